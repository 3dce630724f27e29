"""Faults in what reads a configuration and says what it does."""

from tests.faults.fault import Fault

CHECK = (
    Fault(
        "TRL's steps on a batch forget the accumulation of gradients",
        "check/libraries/trl.py",
        'given, per_generation, accumulated, ("steps_per_generation", "gradient_accumulation_steps")',
        'given, per_generation, 1, ("steps_per_generation", "gradient_accumulation_steps")',
        "test_check_libraries",
    ),
    Fault(
        "verl's default estimator is taken for grpo",
        "check/libraries/verl.py",
        'found.setdefault("adv_estimator", "gae")',
        'found.setdefault("adv_estimator", "grpo")',
        "test_check_libraries",
    ),
    Fault(
        "a right answer of open-instruct earns one",
        "check/libraries/open_instruct.py",
        'given.number("verification_reward", default=10.0)',
        'given.number("verification_reward", default=1.0)',
        "test_check_libraries",
    ),
    Fault(
        "a file's parents lie over it",
        "check/inheritance.py",
        "return laid(base, nested(own))",
        "return laid(nested(own), base)",
        "test_check_inheritance",
    ),
    Fault(
        "YAML makes objects",
        "check/reading.py",
        "yaml.SafeLoader(text)",
        "yaml.UnsafeLoader(text)",
        "test_check_reading",
    ),
    Fault(
        "what is left of the worse answer is what is left of the better one",
        "check/hazards/penalty.py",
        "share = 1 / (1 + math.exp(min(log_odds, 700)))",
        "share = 1 / (1 + math.exp(min(-log_odds, 700)))",
        "test_check_hazards",
    ),
    Fault(
        "a spread beside a penalty is taken for none",
        "check/hazards/finding.py",
        "return None if found is None else Convention(ddof=found[0], added=found[1])",
        "return None",
        "test_check_hazards",
    ),
    Fault(
        "stale answers that nothing sees are only worth knowing",
        "check/hazards/sampler.py",
        "Level.KNOW if seen else Level.HAZARD",
        "Level.KNOW",
        "test_check_hazards",
    ),
    Fault(
        "the exit code is 1 above the bound only",
        "cli/checking.py",
        "found.worst >= BOUNDS[fail_on]",
        "found.worst > BOUNDS[fail_on]",
        "test_check_cli",
    ),
    Fault(
        "masked answers push as if there were no mask",
        "theory/settings.py",
        "return share if votes else np.zeros_like(share)",
        "return np.ones_like(share)",
        "test_theory_settings test_check_hazards",
    ),
)
