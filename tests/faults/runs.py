"""Faults in optimizers, the loop, sweeps and resuming."""

from __future__ import annotations

from tests.faults.fault import Fault

OPTIMIZERS = (
    Fault(
        "decay is coupled",
        "optimizers.py",
        """            scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay),""",
        """            optax.add_decayed_weights(self.weight_decay),
            scale_by_adam(self.b1, self.b2, self.eps),""",
        "test_optimizers test_simulation",
    ),
    Fault(
        "decay reads the batch's start",
        "steps.py",
        "own = plain(params)",
        "own = plain(state.params)",
        "test_simulation",
    ),
    Fault(
        "clipping a norm mixes runs",
        "optimizers.py",
        """    max_norm: Number = number(1.0, low=0.0, open_low=True)
    reduces: ClassVar[bool] = True""",
        """    max_norm: Number = number(1.0, low=0.0, open_low=True)
    reduces: ClassVar[bool] = False""",
        "test_optimizers",
    ),
    Fault(
        "cosine decay ends elsewhere",
        "optimizers.py",
        "(1 - self.end) * 0.5",
        "(1 - self.end) * 0.25",
        "test_optimizers test_simulation",
    ),
)

LOOP = (
    Fault(
        "the old policy is refreshed an iteration late",
        "train.py",
        "refresh = done % config.loop.refresh_every == 0",
        "refresh = state.step % config.loop.refresh_every == 0",
        "test_simulation",
    ),
    Fault(
        "every pass takes the minibatches of the first",
        "steps.py",
        "rows = jnp.argsort(order, axis=1)",
        "rows = jnp.argsort(order[:1] + 0 * order, axis=1)",
        "test_simulation",
    ),
    Fault(
        "a frozen gradient moves along",
        "steps.py",
        "point = state.old_params if at_old else params",
        "point = params",
        "test_train",
    ),
    Fault(
        "a thinned record is of the first iteration",
        "train.py",
        "lambda i: i == plan.every - 1",
        "lambda i: i == 0",
        "test_measures test_train",
    ),
    Fault("an average begins one late", "train.py", "(i + 1 >= first)", "(i >= first)", "test_measures"),
    Fault(
        "the start is the state after the first step",
        "train.py",
        "first = at_start(config, state, plan, fresh)",
        "first = at_start(config, after, plan, fresh)",
        "test_measures",
    ),
    Fault(
        "the KL to the reference runs the other way",
        "measures.py",
        "diagnostics.kl(view.config.policy, state.params, state.ref_params, view.prompts)",
        "diagnostics.kl(view.config.policy, state.ref_params, state.params, view.prompts)",
        "test_simulation",
    ),
)

SWEEPS = (
    Fault(
        "runs are settled by the first setting",
        "sweeps/program.py",
        "column[index[i]]",
        "column[0 * index[i]]",
        "test_sweep",
    ),
    Fault(
        "settings change fastest, seeds slowest",
        "sweeps/work.py",
        "np.unravel_index(run // len(self.seeds), sizes)",
        "np.unravel_index(run % self.settings, sizes)",
        "test_sweep",
    ),
    Fault(
        "axes are labelled in reverse",
        "sweeps/dataset.py",
        "shape = [axis.size for axis in grid] + [len(seeds)]",
        "shape = [axis.size for axis in variants] + [axis.size for axis in axes][::-1] + [len(seeds)]",
        "test_sweep",
    ),
    Fault(
        "the root is forgotten",
        "sweeps/program.py",
        "jnp.uint32(root)",
        "jnp.uint32(0)",
        "test_sweep",
    ),
    Fault(
        "a second program keeps the first one's numbers",
        "sweeps/program.py",
        "leaves = jax.tree.map(_array, config)",
        "leaves = _kept.setdefault(jax.tree.structure(config), jax.tree.map(_array, config))",
        "test_layout test_sweep",
    ),
    Fault(
        "an average is divided by every iteration",
        "train.py",
        "count = int(np.sum(plan.iterations(iterations) >= first))",
        "count = iterations",
        "test_measures",
    ),
)

FUSED = (
    Fault(
        "a kernel's operations are told apart by their first operand",
        "fused/lanes.py",
        "*(_identity(x) for x in row))",
        "*(_identity(x) for x in row[:1]))",
        "test_fused",
    ),
    Fault(
        "a kernel's slices take every number",
        "fused/rules.py",
        "slice(first, last, step)",
        "slice(first, last)",
        "test_fused",
    ),
    Fault(
        "a kernel's first record overwrites its start",
        "fused/kernel.py",
        "write(inside, i + ahead, found)",
        "write(inside, i, found)",
        "test_fused",
    ),
    Fault(
        "a kernel's sums over questions count the lanes that are idle",
        "fused/lanes.py",
        "if self.questions < self.shape[1]:",
        "if False:",
        "test_fused_questions",
    ),
    Fault(
        "a kernel's numbers are those of another number of questions",
        "fused/twins.py",
        "            return ours\n",
        "            return theirs\n",
        "test_fused_questions",
    ),
    Fault(
        "a kernel takes actions for questions",
        "fused/rules.py",
        "if _behind_questions(before) != _behind_questions(after):",
        "if False:",
        "test_fused_questions",
    ),
    Fault(
        "a kernel is taken though it differs",
        "sweeps/fusing.py",
        "_tried[key] = choice.disagreement(*given, plan, lanes)",
        "_tried[key] = choice.disagreement(*given, plan, lanes) and None",
        "test_fused",
    ),
)

RESUME = (
    Fault(
        "a part is taken under any name",
        "sweeps/storage.py",
        "if place != [str(variant), str(part)]:",
        "if False:",
        "test_storage",
    ),
    Fault(
        "a part of another sweep is read back",
        "sweeps/storage.py",
        'self._refuse_other(_manifest_in(data.attrs, path), f"{path} belongs to")',
        "pass",
        "test_storage",
    ),
    Fault(
        "the manifest forgets the seeds",
        "sweeps/work.py",
        '"seeds": digest(work.seeds.tolist()),',
        "",
        "test_sweep",
    ),
    Fault(
        "a resumed sweep computes every part again",
        "sweeps/computing.py",
        "done = self.store.read(variant, first // shape.runs) if self.store else None",
        "done = None",
        "test_sweep",
    ),
)
