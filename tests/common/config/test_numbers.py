"""Numbers of a configuration: none is endless, and none means nothing."""

import pytest

from common.command_line.keys import keys_of
from common.config import RunConfig
from common.config.overrides import load
from common.errors import UserError
from tests.common.config.trees import AllJobs, switched


def numbers_of(schema: type[RunConfig]) -> list[tuple[str, str, dict[str, str]]]:
    """Every key that takes a number: its name as in an override, its type, and the kinds it needs."""
    keys = []
    for key in keys_of(schema):
        takes_number = "int" in key.type.split("|") or "float" in key.type.split("|")
        if takes_number or key.type == "list of float":
            name = key.name.replace(".NAME.", ".x.").replace(".N.", ".0.")
            kinds = {}
            for path, kind in key.kinds:
                kinds[path.replace(".NAME", ".x").replace(".N", ".0")] = kind
            keys.append((name, key.type, kinds))
    return keys


NUMBERS = numbers_of(AllJobs)


REQUIRED = {
    "members": '=[{ judge = { kind = "rules" } }]',
    "member": ".kind=rules",
    "judge": ".kind=rules",
    "eye": ".kind=torch",
    "target": "=a:B",
    "base_url": "=http://h/v1",
    "size": "=5",
}
"""What to set where a section of a kind wants a value of its own; "=x" for all others."""


def load_number(name: str, kinds: dict[str, str], word: str) -> AllJobs:
    words = [f"--{path}.kind={kind}" for path, kind in kinds.items()]
    if name.startswith("evaluation.suites.") and not kinds:
        words.append('--evaluation.suites=["shapes"]')
    if name.startswith("povid.endpoint"):
        words += ["--povid.endpoint.base_url=http://h/v1", "--povid.endpoint.model=m"]
    words.append(f"--{name}={word}")
    for _ in range(5):
        try:
            return load(AllJobs, None, words)
        except UserError as error:
            key, missing, _ = str(error).partition(": expected a value, got nothing")
            if not missing:
                raise
            words.insert(0, f"--{key}{REQUIRED.get(key.rpartition('.')[2], '=x')}")
    raise AssertionError(words)


@pytest.mark.parametrize(("name", "type", "kinds"), NUMBERS, ids=str)
def test_no_number_is_endless(name: str, type: str, kinds: dict[str, str]) -> None:
    words = ["inf", "-inf", "nan", "1e300", "true"]
    if type == "list of float":
        words = [f"[{word}, 0.5]" for word in words]
    for word in [*words, str(10**30)]:
        with pytest.raises(UserError) as error:
            load_number(name, kinds, word)
        line = str(error.value)
        # A rule between two numbers, as of mdpo's crop, names the last part of the key.
        assert name.rpartition(".")[2] in line and "\n" not in line, (word, line)


@pytest.mark.parametrize(
    ("key", "word", "said"),
    [
        ("learner.optimizer.lr", "0", "greater than or equal to 0.000000000001"),
        ("learner.optimizer.lr", "1e-300", "greater than or equal to 0.000000000001"),
        ("learner.optimizer.lr", "2", "less than or equal to 1"),
        ("learner.optimizer.betas", "[0.9, 1.0]", "less than 1"),
        ("learner.optimizer.betas", "0.9,1.5", "less than 1"),
        ("learner.optimizer.betas", "[-0.1, 0.9]", "greater than or equal to 0"),
        ("learner.optimizer.weight_decay", "2", "less than or equal to 1"),
        ("loop.heartbeat_s", "-1", "greater than 0"),
        ("loop.stall_limit_s", "0", "greater than 0"),
        ("cluster.start_timeout_s", "-5", "greater than 0"),
        ("learner.num_cpus", "-1", "greater than or equal to 0"),
        ("reward.num_cpus", "-1", "greater than or equal to 0"),
        ("rollout.num_gpus", "-1", "greater than or equal to 0"),
        ("rollout.num_gpus", "1.5", "a share of one GPU or a whole number"),
        ("learner.num_gpus", "2.5", "a share of one GPU or a whole number"),
        ("rollout.engine.block_size", "0", "greater than or equal to 1"),
        ("rollout.temperature", "1000", "less than or equal to 100"),
        ("rollout.bdhs.similarity_threshold", "-2", "greater than or equal to -1"),
        ("run.seed", str(2**63), f"less than {2**63}"),
        ("learner.num_steps", str(2**31), "at most 2,147,483,647"),
    ],
)
def test_numbers_that_mean_nothing(key: str, word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        switched(f"--{key}={word}")
    assert str(error.value).startswith(key) and said in str(error.value)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("learner.optimizer.lr", "3e-5"),
        ("learner.optimizer.betas", "[0, 0.999]"),
        ("learner.loss.beta", "0.02"),
        ("rollout.engine.kv_cache_bytes", str(64 << 30)),
        ("rollout.num_gpus", "0.5"),
        ("reward.num_gpus", "2"),
        ("run.seed", "20261125190512"),
        ("run.seed", "-1"),
        ("rollout.bdhs.rho", "1"),
    ],
)
def test_numbers_that_people_use(key: str, word: str) -> None:
    switched(f"--{key}={word}")
