"""Stand-ins for the real parts, for tests that want speed. Each passes the contract tests of what it stands in for.

`FakeRolloutWorker` and `FakeLearner` are workers, which `LocalRuntime` calls without Ray. They share a policy of one
weight; the ways of a push between them are `FakeMeetings`.
"""
