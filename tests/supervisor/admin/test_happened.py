"""Recent events on the page: the newest first, in the words of the command."""

from supervisor.admin.happened import SHOWN, happened
from supervisor.history import History


def test_events_are_told_newest_first_with_whom_they_concern() -> None:
    history = History(0, lambda _: True)
    history.supervisor(1.0, "ready", "2 shards")
    history.registered(2.0, "waf", 7, 1, 0.0124)
    history.shard(3.0, 1, "died", "pid 9 killed by SIGKILL")
    history.shard(3.5, 1, "silent", "silent")
    history.shard(3.6, 1, "answers", "answers again")
    history.refused(4.0, "waf", "uid 0", "connection_limit", "it has 4 of 4")
    history.refused(5.0, None, "uid 0", "bad_registration", "no JSON")

    assert [(e.at, e.who, e.kind, e.text) for e in happened(history)] == [
        (5.0, "unknown", "refused", "bad_registration: no JSON (from uid 0)"),
        (4.0, "waf", "refused", "connection_limit: it has 4 of 4 (from uid 0)"),
        (3.6, "shard 1", "answers", "again"),
        (3.5, "shard 1", "silent", ""),
        (3.0, "shard 1", "died", "pid 9 killed by SIGKILL"),
        (2.0, "waf", "registered", "after 12 ms, shard 1"),
        (1.0, "supervisor", "ready", "2 shards"),
    ]


def test_only_the_last_events_are_told() -> None:
    history = History(0, lambda _: True)
    for second in range(100):
        history.supervisor(float(second), "reloaded", "nothing changed")

    assert [e.at for e in happened(history)] == [float(99 - i) for i in range(SHOWN)]
