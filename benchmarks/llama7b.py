"""A 7B-parameter Llama, checked statically: seconds, and memory beyond what the imports take.

    python -m benchmarks.llama7b [--sequence 512]

The model is built on the meta device from a config of Llama 2's sizes; no weight is ever allocated.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from trainlint import check


def megabytes() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Build, check, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sequence", type=int, default=512)
    sequence = parser.parse_args().sequence
    torch.set_num_threads(1)
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    imported = megabytes()
    started = time.perf_counter()
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    built = time.perf_counter()
    ids = torch.randint(0, 32000, (2, sequence))
    report = check(model, {"input_ids": ids, "labels": ids})
    checked = time.perf_counter()
    count = sum(parameter.numel() for parameter in model.parameters())
    target = report.targets[0]
    print(f"{count / 1e9:.2f}B parameters, {target.operations} operations, {target.status}")
    print(f"built in {built - started:.1f} s, checked in {checked - built:.1f} s")
    print(
        f"peak memory {megabytes() - imported:.0f} MiB above {imported:.0f} MiB after the imports"
    )
    print(f"findings: {[finding.message for finding in report.findings]}")


if __name__ == "__main__":
    main()
