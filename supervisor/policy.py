"""The policy for registrations: token, allowlist, uid. The ledger checks the connection limits."""

from collections.abc import Iterable

from dialout import ErrorCode, Registration, Rejection
from dialout.claims import Claim
from supervisor.config.errors import ConfigError
from supervisor.config.model import Config, uid_problems
from supervisor.config.patterns import AgentPatterns
from supervisor.config.tokens import TokenTable, load_tokens


class Policy:
    """The rules of one configuration, applied to each registration.

    *tcp_addresses* are listened on beside the addresses of *config*: inherited ones, and old ones until a restart. The
    constructor reads the token files of *config*. ConfigError when one of them cannot be used, or when no rule would
    apply to agents at a TCP address.
    """

    def __init__(self, config: Config, tcp_addresses: Iterable[str] = ()) -> None:
        if problems := list(uid_problems(config, tcp_addresses)):
            raise ConfigError(problems)
        limits = config.limits
        loaded = load_tokens(config) if limits.require_auth else ()
        self._tokens = TokenTable(loaded) if limits.require_auth else None
        self._all_tokens = loaded
        self.tokens = loaded[len(config.tokens) :]
        """The tokens of the token files, for display. `Config` has the others."""
        self._allowed = None if limits.allowed_agents is None else AgentPatterns(limits.allowed_agents)
        self._uids = None if config.allow_uids is None else frozenset(config.allow_uids)

    @property
    def rules(self) -> dict[str, int | None]:
        """The rules that admit agents, by name, each with its connection limit (None: no limit)."""
        found: dict[str, int | None] = {}
        if self._tokens is not None:
            for token in self._all_tokens:
                limits = [most for most in (found.get(token.rule), token.max_connections) if most is not None]
                found[token.rule] = min(limits, default=None)
        elif self._allowed is not None:
            found = dict.fromkeys(self._allowed.patterns)
        return found

    def objection(self, agent_id: str) -> str | None:
        """Why no registration under this id can succeed, with any token; None when one may succeed."""
        if self._tokens is not None and not self._tokens.knows(agent_id):
            return "no token is good for this id"
        if self._allowed is not None and not self._allowed.matches(agent_id):
            return "it is not in allowed-agents"
        return None

    @property
    def wants_uid(self) -> bool:
        """Whether `check` needs the uid of a Unix socket's peer."""
        return self._uids is not None

    def check(self, claim: Claim | Registration, uid: int | None) -> str:
        """Return the rule that admits the agent (see `rules`), or raise Rejection.

        Looks only at the agent id, the token, and *uid*, the uid of a Unix socket's peer. The rule is empty when the
        configuration has neither tokens nor an allowlist. The token is checked before the allowlist, so that a peer
        without a valid token cannot find out which ids exist.
        """
        agent_id, answer_type = claim.agent_id, claim.answer_type
        rule: str | None = ""
        if self._tokens is not None:
            rule = self._tokens.rule_for(agent_id, claim.auth_token)
            if rule is None:
                raise Rejection(
                    ErrorCode.AUTH_FAILED,
                    "authentication failed: the token is missing, or not one for this agent id",
                    answer_type,
                )
        if self._allowed is not None and not self._allowed.matches(agent_id):
            raise Rejection(ErrorCode.NOT_ALLOWED, "not allowed: the agent id is not in allowed-agents", answer_type)
        if self._uids is not None and uid is None and self._tokens is None:
            raise Rejection(
                ErrorCode.NOT_ALLOWED,
                "not allowed: the listener knows agents by their uid, and a TCP connection has none",
                answer_type,
            )
        if self._uids is not None and uid is not None and uid not in self._uids:
            raise Rejection(ErrorCode.NOT_ALLOWED, "not allowed: this uid is not in allow-uid", answer_type)
        if self._tokens is None and self._allowed is not None:
            rule = self._allowed.closest_match(agent_id)
        return rule or ""
