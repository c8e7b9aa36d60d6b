"""From an `nn.Module` to operations: one forward on meta tensors, and the inputs for it."""
