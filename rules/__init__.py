"""The rules that come with trainlint: one file a rule, one folder a family.

Shipped as the package `trainlint_rules` and registered through the entry-point group `trainlint.rules`,
like anybody's own rule pack.
"""
