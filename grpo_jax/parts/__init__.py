"""The seven slots of a method, one concept a file.

shaping · advantages (returns) · ratios · gains (soft_gains) · corrections (sampler) · penalties · reductions
"""
