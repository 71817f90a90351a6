"""Journal and metrics survive a torn last line; a resumed run has one metrics line per step."""

from pathlib import Path

from common.journal import Journal, read_events
from common.metrics import MetricsWriter, read_lines


def test_events_come_back_in_order_and_a_torn_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "events.jsonl"
    journal = Journal(path)
    journal.write("group", id="a", outcome="pair")
    journal.close()
    # As a crash leaves it.
    with path.open("a") as file:
        file.write('{"event": "step", "st')
    journal = Journal(path)
    journal.write("step", step=1)
    journal.sync()
    group, step = read_events(path)
    assert group["event"] == "group"
    assert group["id"] == "a"
    assert step["event"] == "step"
    assert step["step"] == 1
    journal.close()


def test_metrics_of_repeated_steps_are_replaced(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, 1)
    for step in (1, 2, 3):
        first.write(step, {"loss": 1.0})
    first.close()
    second = MetricsWriter(tmp_path, 3)
    second.write(3, {"loss": 0.5})
    second.close()
    losses = {}
    for line in read_lines(tmp_path / "metrics.jsonl"):
        assert line["step"] not in losses
        losses[line["step"]] = line["loss"]
    assert losses == {1: 1.0, 2: 1.0, 3: 0.5}
    assert list(losses) == [1, 2, 3]
