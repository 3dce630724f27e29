"""The seven slots of a method, one concept a file.

shaping · advantages · ratios · gains · corrections · penalties · reductions
"""
