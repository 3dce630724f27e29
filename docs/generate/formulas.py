"""The formula that a claim is about, in LaTeX, and what its letters are; claims without one are left out."""

from __future__ import annotations

from typing import NamedTuple


class Formula(NamedTuple):
    """For a claim's page."""

    latex: str
    """Each line a formula of its own: on a narrow screen they stand below each other."""
    where: str


FORMULAS = {
    "A1": Formula(
        r"A_i = \operatorname{sign}(r_i - r_j),"
        "\n"
        r"P_2(o \mid \pi) = \mathbb{E}_{o' \sim \pi}\left[P(o \succ o') - P(o' \succ o)\right]",
        "r_i and r_j are the two rewards of a group, with sign 0 = 0; P(o ≻ o′) is the chance that o earns "
        "strictly more than o′.",
    ),
    "A2": Formula(
        r"\lim_{G \to \infty} P_G(o \mid \pi) = \frac{r(o) - \mathbb{E}_\pi r}{\sigma(\pi)}",
        "P_G is the expected advantage of answer o in a group of G, r(o) its expected reward, σ(π) the "
        "standard deviation of the reward of an answer drawn from π.",
    ),
    "A3": Formula(
        r"D = \frac{\pi_{ref}}{\pi} - \log\frac{\pi_{ref}}{\pi} - 1,"
        "\n"
        r"\mathbb{E}_\pi D = KL(\pi \Vert \pi_{ref}),"
        "\n"
        r"\mathbb{E}_\pi \nabla D = \nabla KL(\pi_{ref} \Vert \pi)",
        "D is k3 at an answer drawn from π_old = π; gradients are in logits, with the answers held as drawn.",
    ),
    "A4": Formula(
        r"\left[1 - \frac{P_G(o \mid \pi) - \mathbb{E}_{o' \sim \pi} P_G(o' \mid \pi)}{\beta}\right] \pi(o) "
        r"= \pi_{ref}(o)",
        "P_G is the expected advantage of an answer in a group of G, β the penalty's weight; for every o "
        "with π(o) > 0.",
    ),
    "A5": Formula(
        r"\pi(a) = \frac{1}{2}\left(1 - \frac{\beta}{\gamma} + "
        r"\sqrt{\left(1 - \frac{\beta}{\gamma}\right)^2 + 4 \frac{\beta}{\gamma} \pi_{ref}(a)}\right)",
        "γ = P(a ≻ b) − P(b ≻ a) > 0, β the penalty's weight; two answers, groups of two.",
    ),
    "A6": Formula(
        r"\pi = \frac{2\beta^2\pi_{ref} + 1 + \sqrt{1 + 4\beta^2\pi_{ref}(1 - \pi_{ref})}}{2(1 + \beta^2)}",
        "π and π_ref are the better answer's probabilities, β the penalty's weight; two answers, G → ∞.",
    ),
    "A7": Formula(
        r"\pi(o) = \frac{\pi_{ref}(o)}{1 - P_G(o \mid \pi)/\beta} \quad \text{(GRPO)},"
        "\n"
        r"\pi(o) \propto \pi_{ref}(o) \, e^{r(o)/\beta} \quad \text{(RLHF)}",
        "P_G is the expected advantage in a group of G, whose mean over π is 0; r(o) the expected reward.",
    ),
    "A8": Formula(
        r"\pi(o) \propto \pi_{ref}(o) \, e^{P_G(o \mid \pi)/\beta},"
        "\n"
        r"h(x) = \frac{1}{\beta\sqrt{x(1 - x)}} - \log\frac{x}{1 - x} + \log\frac{\pi_{ref}}{1 - \pi_{ref}}",
        "With the penalty multiplied by the importance ratio; x is the better answer's probability, h(x) = 0 "
        "where training in large groups stands still.",
    ),
    "A9": Formula(
        r"P_G = \left(1 - \frac{1}{G}\right)\left(\mathbb{E}_\pi r - \mathbb{E}_{\pi_{old}} r\right),"
        "\n"
        r"\pi(o) \propto \pi_{ref}(o) \exp\left(\frac{r(o)}{\beta} \cdot \frac{G - 1}{G}\right)",
        "The expected preference with advantages r − r̄, and the stationary policy with the KL itself as "
        "penalty: RLHF's at βG/(G − 1).",
    ),
    "A10": Formula(
        r"\beta_{eff} = \beta \, \sigma(\pi)",
        "σ(π) is the standard deviation of the reward of an answer drawn from π; large groups, advantages r "
        "− r̄.",
    ),
    "A11": Formula(
        r"\frac{\beta_{eff}}{\beta} = \frac{\psi_G(p)}{\psi_G^c(p)},"
        "\n"
        r"\psi_G^c(p) = \frac{1}{p(1 - p)} \, "
        r"\mathbb{E}\left[\frac{K(G - K)\,\Delta}{G^2 \left(\Delta\sqrt{\frac{K(G - K)}{G(G - 1)}} + "
        r"c\right)}\right]",
        "K ~ Bin(G, p) answers are right, Δ is the gap of the two rewards, c what the library adds; ψ_G is "
        "the paper's, with ddof 0 and c = 0. Without c the factor is √(G/(G − 1)).",
    ),
    "B0": Formula(
        r"J = \mathbb{E}\left[\sum_i \sum_t \alpha_{i,t} \min\left(s_{i,t} A_i, \, "
        r"\operatorname{clip}(s_{i,t}, 1 - \epsilon_{low}, 1 + \epsilon_{up}) A_i\right) - \beta R\right]",
        "A_i = r_i − r̄; a method is its token weights α, its ratio s and its regulariser R.",
    ),
    "B1": Formula(
        r"W_{agg} = \sum_i \omega_{i,t} A_i," "\n" r"\omega = \alpha \, \frac{\partial s}{\partial \log\pi}",
        "The push on a token that the group's answers share; α weighs a token, s is its ratio.",
    ),
    "B2": Formula(
        r"\left(1 - \frac{1}{G}\right) \pi(a) \left(r(a) - \mathbb{E} r\right) "
        r"\nabla\mathbb{E}\left[\frac{L_0}{|o|} \,\middle|\, a\right]",
        "The expected gradient in the tail behind first token a, advantages r − r̄; |o| is an answer's "
        "length, L₀ the mean length at the start. 0 under constant weights.",
    ),
    "B3": Formula(
        r"\frac{1}{1 + \epsilon/(\varphi\sqrt{v})}",
        "A coordinate's step where rewards are multiplied by φ, over that at ε = 0; v is Adam's second "
        "moment at φ = 1.",
    ),
    "B4": Formula(
        r"C_{T,k} = \beta_1^{k+1} \, \frac{1 - \beta_1^{T-1}}{1 - \beta_1^{T+k}} "
        r"\sqrt{\frac{1 - \beta_2^{T+k}}{\beta_2^{k+1}(1 - \beta_2^{T-1})}} "
        r"\; \to \; \left(\frac{\beta_1}{\sqrt{\beta_2}}\right)^{k+1}",
        "Adam's update on zero gradient over the last live one; T is Adam's count at the first such step, "
        "which is k = 0.",
    ),
    "B5": Formula(
        r"\sum_i A_i \Omega_i = G \operatorname{Cov}(A, \Omega)",
        "Ω_i is the total weight of answer i's tokens; where weights are divided by length it is constant, "
        "and the sum is 0.",
    ),
    "B6": Formula(
        r"s_{i,t} = \frac{\pi_\theta}{\pi_{old}} = 1 \quad \text{at} \quad \theta = \theta_{old}",
        "1 lies within the clip's bounds 1 − ε_low and 1 + ε_up, whatever they are.",
    ),
    "B7": Formula(
        r"\alpha_{i,t} \propto \frac{1}{|o_i|} \qquad \text{or} \qquad \alpha_{i,t} \text{ constant}",
        "α weighs token t of answer i, |o_i| is the answer's length.",
    ),
    "C1": Formula(
        r"\left(1 - \frac{1}{G}\right) \sum_s d_{old}(s) \sum_a \nabla\pi_\theta(a \mid s) \, Q_{old}(s, a)",
        "What GRPO's update is in expectation without a clip: d_old counts visits of prefix s, Q_old is what "
        "token a is worth there, both under the old policy.",
    ),
    "C2": Formula(
        r"\left(1 - \frac{1}{G}\right)\nabla J(\theta) \qquad \text{or} \qquad "
        r"\frac{\varphi_G(p)}{p(1 - p)} \nabla J(\theta), \quad "
        r"\varphi_G(p) = \frac{1}{G} \mathbb{E}_{K \sim Bin(G, p)} \sqrt{K(G - K)}",
        "TIC-GRPO's expected update without a clip: with advantages r − r̄, or divided by σ for rewards of "
        "0 and 1; p is the old policy's success rate.",
    ),
    "C3": Formula(
        r"\theta_{k+1} = \theta_k + \eta \, g(\theta_{old}),"
        "\n"
        r"\theta_\mu = \theta_{old} + \mu\eta \, g(\theta_{old})",
        "g is the gradient at the old policy: under SGD μ frozen steps are one of μ times the rate.",
    ),
    "C4": Formula(
        r"\mathbb{E}_{old}\left[w^2\right] = (1 + \chi^2)^T,"
        "\n"
        r"w = \prod_{t=1}^T \rho_t,"
        "\n"
        r"\chi^2 = \sum_a \frac{\pi_\theta(a)^2}{\pi_{old}(a)} - 1",
        "ρ_t is the ratio at token t of T; the same two laws, and so the same χ², at every prefix.",
    ),
    "C5": Formula(
        r"J_{TIC} - J_{GRPO} \approx \frac{1}{2} \eta^2 \mu(\mu - 1) \, g^\top (H - H_{block}) \, g",
        "To leading order in the rate η, μ steps a batch, without the factor 1 − 1/G and a clip; g and H "
        "are J's gradient and Hessian at θ_old, H_block the Hessian's diagonal blocks, one for each prefix.",
    ),
    "C6": Formula(
        r"\left(1 - \frac{1}{G}\right) \nabla\mathbb{E}_\theta\left[\frac{r}{|o|}\right]",
        "TIC-GRPO's expected update with the reward r/|o|, without a clip; |o| is the answer's length.",
    ),
    "D1": Formula(
        r"\mathbb{E}_q\left[\frac{\pi}{q}\right] = S,"
        "\n"
        r"\mathbb{E}_q\left[\prod_t \frac{\pi_t}{q_t}\right] = P_\pi(\text{kept})",
        "q is π on the tokens that the filter keeps, divided by their mass S; an answer is kept if all its "
        "tokens are.",
    ),
    "D2": Formula(
        r"f \left[\tau\nabla J_\tau + \operatorname{Cov}_q\left(r, \sum_t (q - \pi)(\cdot \mid "
        r"s_t)\right)\right]",
        "The expected update for answers sampled at temperature τ and scored at 1 (softmax tables); f = 1 − "
        "1/G, J_τ is the return of the policy at τ.",
    ),
    "D3": Formula(
        r"\text{error}^2 = \left\Vert \mathbb{E} g - f \nabla J(\pi) \right\Vert^2 + "
        r"\frac{\operatorname{Var} g}{64},"
        "\n"
        r"1 - \epsilon \le \frac{\pi}{q} \le 1 + \epsilon",
        "g is one group's corrected update, a batch has 64; f = 1 − 1/G. q is who sampled; the clip of the "
        "ratio has ε = 0.2.",
    ),
    "D4": Formula(
        r"ESS = \frac{1}{N} \cdot \frac{\left(\sum_i w_i\right)^2}{\sum_i w_i^2}",
        "w_i is the ratio of the trainer's policy to the one that sampled, for answer i of N.",
    ),
    "D5": Formula(
        r"\left(1 - \frac{1}{G}\right) \nabla\mathbb{E}\left[r \mid \text{in time}\right]",
        "The expected update where late answers are drawn anew, with one policy for all ages.",
    ),
    "D6": Formula(
        r"\nabla\mathbb{E}_{o \sim q}\left[(r(o) - V) \log\pi(o)\right]",
        "q is a sampler that never changes, V the baseline; GRPO's group mean is V = E_q r.",
    ),
    "D7": Formula(
        r"\text{bias} = \frac{\left\Vert \mathbb{E}_q g - f \nabla J(\pi) \right\Vert}"
        r"{\left\Vert f \nabla J(\pi) \right\Vert},"
        "\n"
        r"\text{variance} = \frac{\operatorname{Var}_q g}{\operatorname{Var}_\pi g_\pi}",
        "g is one group's corrected update with answers from the engine q, g_π one without a correction with "
        "answers from the policy itself; f = 1 − 1/G.",
    ),
    "E1": Formula(
        r"\mathbb{E}_{\pi_{old}}\left[\nabla\left(\rho \, k_3\right)\right] = \nabla KL(\pi \Vert "
        r"\pi_{ref}),"
        "\n"
        r"k_3 = \frac{\pi_{ref}}{\pi} - \log\frac{\pi_{ref}}{\pi} - 1",
        "ρ = π/π_old is the importance ratio, differentiated; true of answers of one token, and of every "
        "prefix by itself with the prefixes held as drawn.",
    ),
    "E2": Formula(
        r"\sum_q w_G(p_q) \nabla p_q,"
        "\n"
        r"w_G(p) = \frac{\mathbb{E}_{K \sim Bin(G, p)}\sqrt{K(G - "
        r"K)}}{G\,p(1 - p)} \; \to \; \frac{1}{\sqrt{p(1 - p)}}",
        "What dividing by σ ascends for rewards of 0 and 1: p_q is the success rate of prompt q. The limit "
        "is that of large groups, the slope of 2 arcsin √p.",
    ),
    "E3": Formula(
        r"J_G = -\sum_{k=1}^{G} \frac{(1 - p)^k}{k},"
        "\n"
        r"\nabla J_G = \frac{1 - (1 - p)^G}{p} \nabla p",
        "p is the success rate of a prompt; log p is the limit of large groups. Centred, the sum ends at "
        "G − 1.",
    ),
    "E4": Formula(
        r"t = p^G + (1 - p)^G," "\n" r"1 + t + \dots + t^{k-1} = \frac{1 - t^k}{1 - t}",
        "t is how often a group is dead at success rate p; asked again k times at most, a mixed group counts "
        "this much.",
    ),
    "E5": Formula(
        r"A_i = \frac{\lambda(\bar{\ell} - \ell_i)}{\lambda\sigma_\ell + \text{eps}}",
        "The advantage in a group with one outcome, where only the length term −λℓ tells answers apart: at "
        "eps = 0 it does not depend on λ.",
    ),
    "E6": Formula(
        r"f\left[P\,\nabla m + m(1 - P)\,\nabla P\right],"
        "\n"
        r"P = P(\text{ends}), \quad "
        r"m = \mathbb{E}[r \mid \text{ends}]",
        "The expected update where truncated answers are masked and still count in the group's mean; without "
        "the mask the factor 1 − P is missing. f = 1 − 1/G.",
    ),
    "E7": Formula(
        r"\frac{1}{|o_i|} \sum_t,"
        "\n"
        r"\frac{1}{\sum_{j \in \text{prompt}} |o_j|} \sum_t,"
        "\n"
        r"\frac{1}{\sum_{j \in \text{batch}} |o_j|} \sum_t",
        "A token mean per sequence, per prompt and per batch; |o_j| is an answer's length.",
    ),
    "E8": Formula(
        r"A = \frac{\sum_m (r_m - \bar{r}_m)}{\sigma\left(\sum_m r_m\right)} \quad \text{(GRPO)},"
        "\n"
        r"A = \sum_m \frac{r_m - \bar{r}_m}{\sigma(r_m)} \quad \text{(GDPO)}",
        "r_m are an answer's rewards; means and deviations are those of its group.",
    ),
    "F2": Formula(
        r"\sum_i \frac{A_i \, K(r, o_i)}{G\,|o_i|},"
        "\n"
        r"K(r, w) = \nabla\log\pi(r) \cdot \nabla\log\pi(w)",
        "What a group does to log π of a right answer r, to first order; winners have A_i > 0, losers A_i < "
        "0.",
    ),
    "F3": Formula(
        r"\theta_i - \eta u_i \to \theta_i \quad \text{where} \quad |\eta u_i| < \frac{1}{2} "
        r"\operatorname{ulp}(\theta_i),"
        "\n"
        r"\operatorname{ulp}(\theta) = 2^{\lfloor \log_2 |\theta| \rfloor - m}",
        "A step ηu_i that is smaller than half the distance of stored numbers leaves a parameter as it was; "
        "m is 7 in bfloat16 and 23 in float32. Counted are the parameters that end other than they began.",
    ),
    "F4": Formula(
        r"\hat{J}_s = \frac{1}{N} \left|\{k : y_k = a_k + b_k\}\right|,"
        "\n"
        r"\frac{1}{S} \left|\{s : \hat{J}_s \ge 0.9\}\right| \ge \frac{7}{8}",
        "Of N held-out sums, one sampled answer y_k to each, the share that is right at seed s of S.",
    ),
}
