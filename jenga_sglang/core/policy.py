"""What the prefix cache keeps: every choice that a benchmark can switch off, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class CachePolicy:
    """``prompt_slack_tokens``: how far before the end of a prompt a hit stays possible in groups
    that forget, because the next prompt on the same document differs near its end (0 = off).

    ``keep_branches``: keep what a hit needs at the point where a prompt was seen to leave a known
    history, from the first time on.

    ``hold_hits``: a running request goes on holding, for the next one, what a hit needs at the
    point where it left a known history, until it ends or a reservation would fail; unless one
    more request in its place is worth more.

    ``waiting_prefixes``: evict last what requests in the waiting queue will hit, soonest last
    (`core.lookahead`).

    ``step_cost_tokens``: the tokens of prompt that could be computed in the time that a decode
    step takes however few requests it serves. What running one more request is worth against
    cached prefixes that others wait for; 0 = always admit.

    ``step_cost_percent``: as soon as this server's own steps have been measured, so many per cent
    of what they cost take the place of ``step_cost_tokens`` (0 = never). More than all, for one
    more request is taken to need as much memory as those that run do on the mean, and needs less:
    part of it they hold already.

    ``longest_kept_out_passes``: the most passes of the scheduler in a row in which a request that
    fits is kept out for the sake of cached prefixes that others wait for (`core.guard`); 0 = it
    never is.

    ``awaited_tokens``: a request whose turn it is waits while another computes at least so many
    tokens of its prompt, and then hits them (0 = it computes them as well).

    ``snapshot_gain_percent``: a snapshot of recurrent states that would push out something else is
    left only where a hit on it spares at least that many per cent of the tokens whose rows take as
    much memory as the snapshot, beyond the snapshot before it (0 = wherever a hit may end).

    ``snapshot_room``: a prompt is admitted with room for the snapshots that it will leave.

    ``state_share_percent``: snapshots of recurrent states are left where the next prompt is guessed
    to part from this one, so many that they take at most that many per cent of the bytes which
    the prompt adds for ever (0 = off). They are the first to go.

    ``answer_state_tokens``: while nobody waits, a running request keeps one more snapshot, which
    moves along with its answer in steps of so many tokens: the next turn may continue from there
    (0 = off).

    ``passing_pages``: where memory is short, pages of a chunk that no later token reads take one
    small page for all stripes of their group (`core.passing`).

    The paper's own (§5.1, §5.4). ``request_aware``: a request's pages fill large pages of its own
    before holes in those of others. ``whole_large_pages``: large pages that nothing uses go before
    single pages beside used ones. ``balanced``: what one request needs has one time in every
    group. ``aligned``: of one time, the end of the longest prefix goes first, in every group.
    """

    prompt_slack_tokens: int = 256
    keep_branches: bool = True
    hold_hits: bool = True
    waiting_prefixes: bool = True
    step_cost_tokens: int = 256
    step_cost_percent: int = 150
    longest_kept_out_passes: int = 256
    awaited_tokens: int = 128
    snapshot_gain_percent: int = 8
    snapshot_room: bool = True
    state_share_percent: int = 12
    answer_state_tokens: int = 64
    passing_pages: bool = True
    request_aware: bool = True
    whole_large_pages: bool = True
    balanced: bool = True
    aligned: bool = True

    @classmethod
    def parse(cls, text: str) -> CachePolicy:
        """From ``name=value,name=value``; ``off`` and ``on`` stand for 0 and the default.

        Raises ``ValueError`` for a name that is not a policy or a value that does not fit.
        """
        policy = cls()
        known = {f.name: f for f in fields(cls)}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in known:
                raise ValueError(f"unknown policy {name!r}; known: {', '.join(known)}")
            default = getattr(policy, name)
            parsed = default if value == "on" else 0 if value == "off" else int(value)
            if parsed < 0:
                raise ValueError(f"policy {name}={value} is negative")
            policy = replace(policy, **{name: type(default)(parsed)})
        return policy
