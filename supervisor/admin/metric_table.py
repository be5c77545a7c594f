"""All metrics of the admin endpoint: name, kind, labels and meaning.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for counters. METRICS.md
has the same table, and a test compares them.
"""

from typing import Literal, NamedTuple, cast

Kind = Literal["gauge", "counter", "histogram"]


class Spec(NamedTuple):
    """A metric, with the names of its labels."""

    kind: Kind
    name: str
    labels: tuple[str, ...]
    help: str


def _metric(definition: str, text: str) -> Spec:
    """Make a metric from one line: kind, name, labels."""
    kind, name, *labels = definition.split()
    return Spec(cast("Kind", kind), name, tuple(labels), text)


METRICS: tuple[Spec, ...] = (
    _metric("gauge shardgate_build_info version python", "Always 1; the labels say what runs."),
    _metric("gauge shardgate_ready", "1 while agents are taken, by all shards or by some, as /readyz says; else 0."),
    _metric("gauge shardgate_shards state", "Shards in each state."),
    _metric("gauge shardgate_shards_wanted", "Shards that there should be: as configured, or as scaled since."),
    _metric("gauge shardgate_listeners kind", "Open listening sockets for agents, by kind: uds or tcp."),
    _metric(
        "counter shardgate_registrations_total result",
        "Registrations by result: accepted, the error code of the refusal, or not_an_agent for another protocol.",
    ),
    _metric(
        "counter shardgate_silent_contacts_total",
        "Connections that ended without a byte, as those of health checks do; they are not among the registrations.",
    ),
    _metric(
        "counter shardgate_handshakes_reset_total",
        "Connections that their peers reset before the registration was complete, silent ones among them.",
    ),
    _metric(
        "histogram shardgate_handshake_duration_seconds",
        "From accept until the whole frame was read, of what claims to be a registration.",
    ),
    _metric("histogram shardgate_handoff_duration_seconds", "From offering connections to a shard until it has them."),
    _metric(
        "histogram shardgate_registration_duration_seconds",
        "From accept until the commit: what an accepted agent waits.",
    ),
    _metric(
        "histogram shardgate_move_duration_seconds",
        "How long a connection that moved to another shard was served by nobody.",
    ),
    _metric("gauge shardgate_handshakes_in_progress", "Accepted connections whose registration is not complete."),
    _metric(
        "gauge shardgate_held_descriptors",
        "Descriptors of agents that the supervisor itself still holds; 0 at rest.",
    ),
    _metric("gauge shardgate_slots state", "Slots of all agents in the ledger, by state: reserved or live."),
    _metric("gauge shardgate_agents", "Agents with at least one slot on this host."),
    _metric("gauge shardgate_max_connections_per_agent", "The limit in force for each agent."),
    _metric(
        "gauge shardgate_max_connections",
        "The limit in force for all agents together, by configuration or by descriptors; 0 while it is not known.",
    ),
    _metric(
        "gauge shardgate_config_last_reload_successful",
        "1 when the configuration was good the last time it was read; else 0, and an older one is in force.",
    ),
    _metric(
        "gauge shardgate_config_last_reload_success_timestamp_seconds",
        "When the configuration in force was read.",
    ),
    _metric("counter shardgate_config_reloads_total result", "Reloads by result: success or failure."),
    _metric("gauge shardgate_shard_up shard", "1 while the shard runs or drains; else 0."),
    _metric(
        "gauge shardgate_shard_report_age_seconds shard",
        "Age of the shard's last heartbeat, which is due every 0.5 s.",
    ),
    _metric("counter shardgate_shard_restarts_total shard", "Unplanned ends of the shard's process."),
    _metric("gauge shardgate_shard_connections shard", "Connections in the shard's pool."),
    _metric("gauge shardgate_shard_agents shard", "Agents in the shard's pool; one may be in several shards."),
    _metric("gauge shardgate_shard_prepared shard", "Connections that the shard holds and that are not committed."),
    _metric(
        "gauge shardgate_shard_requests_in_flight shard",
        "Requests that began in the shard and have no outcome yet.",
    ),
    _metric(
        "counter shardgate_requests_total shard outcome",
        "Requests by outcome: answered, the error code of a failure, or shard_lost when the shard's process ended.",
    ),
    _metric(
        "histogram shardgate_request_duration_seconds shard outcome",
        "From a request's arrival in the pool to its outcome: answered or failed.",
    ),
    _metric("counter shardgate_requests_relayed_total shard", "Requests handed on to the shard that holds the agent."),
    _metric("counter shardgate_late_answers_total shard", "Answers of agents to requests that were over by then."),
    _metric(
        "counter shardgate_connections_adopted_total shard",
        "Connections taken: new ones and those that moved here.",
    ),
    _metric("counter shardgate_connections_closed_total shard", "Connections that ended in the shard."),
    _metric("counter shardgate_connections_moved_total shard", "Connections that left for another shard."),
    _metric("counter shardgate_frames_received_total shard", "Frames read from agents."),
    _metric(
        "counter shardgate_bus_gaps_repaired_total shard kind",
        "What was lost between supervisor and shard and repaired: events, counts, or a doubt (counts that disagreed).",
    ),
    _metric("gauge shardgate_process_start_time_seconds process", "When the process started."),
    _metric("counter shardgate_process_cpu_seconds_total process", "User and system time."),
    _metric("gauge shardgate_process_resident_memory_bytes process", "Resident memory."),
    _metric("gauge shardgate_process_open_fds process", "Open descriptors."),
    _metric("gauge shardgate_process_max_fds process", "How many descriptors may be open."),
    _metric(
        "gauge shardgate_process_disk_problems process",
        "Sockets, directories and files that the process needs and that are not on disk as they should be.",
    ),
    _metric(
        "counter shardgate_process_file_write_failures_total process",
        "Attempts to write or to remove a file that failed; they are made again.",
    ),
    _metric(
        "counter shardgate_process_files_mended_total process",
        "Sockets and directories that others removed and that the process made again.",
    ),
    _metric("gauge shardgate_process_loop_lag_seconds process", "How late the event loop's last heartbeat was."),
)
"""All metrics, in the order of the answer."""
