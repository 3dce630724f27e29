"""TIC-GRPO converges faster than GRPO.

[C], abstract, v5 (23 March 2026: "we ... present the first convergence analysis for GRPO-style methods and
show that TIC-GRPO converges faster than GRPO"); v2 speaks of a convergence analysis of both. The full text
was not available. TIC-GRPO is the full method: trajectory ratio, clip above only, r/|o|; GRPO has token
ratios, a clip on both sides and 1/|o|. 100 random trees for each kind of reward, outputs of four tokens or
ending at EOS within three, exact and sampled (groups of 8), μ = 8 steps a batch, also 2, and A/σ. Each method
has the learning rate, of six, at which its mean J over training is greatest.

Refuted if, for an optimizer and a kind of reward, TIC-GRPO is not ahead in mean J by more than 0.005, or not
in mean ‖∇J‖² by more than 1 % of its value before training, in whichever of these settings its lead is
least (99.9 % over trees). Both margins are 1 % of what there is: J starts near 0.5. Checks of the instrument:
the best learning rate is no end of the grid.
"""
