"""Where actors sit, worked out by hand."""

import pytest

from cluster.placement.bundles import Bundle
from cluster.placement.topology import Node, NoRoom, assign, slots_of

NEAR = Node("b", "10.0.0.9", 64, 8)
FAR = Node("a", "10.0.0.10", 64, 8)


def ranks(count: int, gpus: float = 1) -> list[Bundle]:
    return [Bundle(f"learner/{rank}", 1, gpus, "") for rank in range(count)]


def engines(count: int, gpus: float, kind: str = "rollout") -> list[Bundle]:
    return [Bundle(f"{kind}/{index}", 1, gpus, "") for index in range(count)]


def seats(bundles: list[Bundle], *nodes: Node) -> dict[str, str]:
    """Actor -> the id of its node."""
    placed = assign(slots_of(bundles), nodes)
    return {name: node.id for name, node in placed.items()}


def of_kind(placed: dict[str, str], kind: str) -> str:
    """The nodes of learner/0, learner/1 …, a letter for each."""
    names = [name for name in placed if name.startswith(f"{kind}/")]
    return "".join(placed[f"{kind}/{index}"] for index in range(len(names)))


def test_ranks_fill_the_first_node_by_address_and_engines_the_other() -> None:
    """10.0.0.9 comes before 10.0.0.10, whatever Ray's ids and the order of the list are."""
    placed = seats(engines(8, 1) + ranks(8), FAR, NEAR)
    assert of_kind(placed, "learner") == "b" * 8
    assert of_kind(placed, "rollout") == "a" * 8


def test_ranks_that_need_two_nodes_go_on_from_one_to_the_next() -> None:
    placed = seats(engines(2, 2) + ranks(12), FAR, NEAR)
    assert of_kind(placed, "learner") == "b" * 8 + "a" * 4
    assert of_kind(placed, "rollout") == "aa"


def test_an_engine_of_several_gpus_is_whole() -> None:
    """Six ranks on one node would leave 2 + 8: only one of two engines of four would be whole there."""
    placed = seats(engines(2, 4) + ranks(6), NEAR, FAR)
    assert of_kind(placed, "learner") == "b" * 6
    assert of_kind(placed, "rollout") == "aa"
    # 5 + 5 + 6 GPUs: an engine on each node, and the ranks in what is left of both.
    placed = seats(engines(2, 5) + ranks(6), NEAR, FAR)
    assert of_kind(placed, "rollout") == "ba"
    assert of_kind(placed, "learner") == "bbbaaa"


def test_judges_have_gpus_of_their_own_and_reward_workers_free_processors() -> None:
    reward = [Bundle("reward/0", 8, 0, "")]
    small = Node("c", "10.0.0.11", 128, 0)
    bundles = engines(3, 1) + engines(1, 2, "judge") + reward + ranks(3)
    placed = seats(bundles, NEAR, small)
    assert placed["judge/0"] == "b"
    assert placed["reward/0"] == "c"


def test_colocated_ranks_sit_with_their_engine() -> None:
    bundles = engines(4, 2)
    for rank in range(8):
        beside, turn = f"rollout/{rank // 2}", rank % 2
        bundles.append(Bundle(f"learner/{rank}", 1, 1, "", beside, turn))
    slots = slots_of(bundles)
    assert [slot.num_gpus for slot in slots] == [2] * 4
    assert [slot.num_cpus for slot in slots] == [3] * 4
    members = [bundle.name for bundle in slots[1].bundles]
    assert members == ["rollout/1", "learner/2", "learner/3"]
    narrow = Node("c", "10.0.0.1", 64, 4)
    # Not on the narrow node, although its address comes first: there they would be apart.
    assert of_kind(seats(bundles, narrow, NEAR), "rollout") == "bbbb"


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(NoRoom, match="rollout/1"):
        seats(engines(2, 5), NEAR)
    with pytest.raises(NoRoom, match="learner/0"):
        seats(ranks(20), NEAR, FAR)


def test_shares_of_a_gpu_add_up() -> None:
    assert of_kind(seats(engines(10, 0.1), Node("a", "h", 64, 1)), "rollout") == (
        "a" * 10
    )
