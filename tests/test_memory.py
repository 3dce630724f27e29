"""What a process keeps of earlier sweeps is bounded, and let go when it is no longer needed."""

import gc

from jax.extend.core import JaxprEqn

import grpo_jax as gj
from grpo_jax.sweeps import program

SHORT = {"iterations": 2, "record_every": 2, "record": ["reward"], "progress": False}


def swept(measure):
    config = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=1, actions=2), task=gj.Questions(table=[[1.0, 0.0]])
    )
    return gj.sweep(config, measure={"mine": measure}, **SHORT)


def doubled(factor):
    """A measure of one's own, another function each time."""
    return lambda view: factor * view.probabilities[0, 0]


def equations():
    """Of programs as JAX traces them, all that are alive."""
    gc.collect()
    return sum(isinstance(held, JaxprEqn) for held in gc.get_objects())


def test_the_last_programs_used_are_kept_and_of_the_others_no_trace_is_left(monkeypatch):
    monkeypatch.setattr(program, "_kept", {})
    monkeypatch.setattr(program, "KEPT", 2)
    first, second, third = (doubled(factor) for factor in (2.0, 3.0, 4.0))
    assert swept(first).attrs["compilations"] == 1
    few = equations()
    compiled = [swept(measure).attrs["compilations"] for measure in (second, first, third)]
    assert equations() - few < 20
    compiled += [swept(measure).attrs["compilations"] for measure in (first, third)]
    assert compiled == [1, 0, 1, 0, 0]
    assert len(program._kept) == 2
