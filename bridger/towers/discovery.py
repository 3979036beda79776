"""Which modules of an unknown tower are its blocks: chains in a trial forward, or names given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bridger.towers.trial import Firing, Trace, UnreadableTowerError

Fits = Callable[[Tensor], bool]
"""Whether a tensor could be a block's state, by its shape."""

DOMINANT = 0.9
"""An element with this share of a chain's parameters is the tower, its siblings stem and neck."""

RIVAL = 0.5
"""What holds this share of the best chain's parameters could be meant as well, or belong to it."""

SHOWN = 8
"""So many sets of modules are listed where no chain was found."""


@dataclass(frozen=True)
class Chain:
    """Consecutive children of one module, each of which takes what the one before returned."""

    parent: str
    links: tuple[Firing, ...]
    whole: bool

    @property
    def parameters(self) -> int:
        """Return how many numbers its modules hold."""
        return sum(p.numel() for link in self.links for p in link.module.parameters())

    @property
    def alike(self) -> bool:
        """Whether its modules are of one class."""
        return len({type(link.module) for link in self.links}) == 1

    @property
    def named(self) -> bool:
        """Whether its modules have a class of their own."""
        return type(self.links[0].module) is not nn.Sequential

    def holds(self, other: Chain) -> bool:
        """Whether the other chain lies inside one of this chain's modules."""
        return any(other.links[0].name.startswith(f"{link.name}.") for link in self.links)

    def shown(self) -> str:
        """Return the argument that names this chain, and what its modules return."""
        names = [link.name for link in self.links]
        argument = repr(self.parent) if self.whole and self.parent else repr(names)
        shapes = dict.fromkeys(str(link.shape) for link in self.links)
        kind = type(self.links[0].module).__name__
        return f"blocks={argument}: {len(names)} x {kind}, states {', '.join(shapes)}"


def find_blocks(
    module: nn.Module, trace: Trace, fits: Fits, blocks: str | Sequence[str] | None
) -> tuple[Firing, ...]:
    """Return a tower's blocks, in the order in which they run.

    Args:
        module: the tower.
        trace: of a trial forward.
        fits: whether a tensor could be a block's state.
        blocks: the name of a module whose children are the blocks, or the blocks' names, or
            None to search.

    Raises:
        UnreadableTowerError: none was found.
        ValueError: several sets could be meant (all are listed), or the named ones do not run
            once each, in order, with a state that fits.
    """
    if blocks is not None:
        return kept_whole(module, _named(module, trace, fits, blocks))
    chains = list(_chains(module, trace, fits))
    # A stem and all the rest make two links, so pairs count only where there is nothing better,
    # or where their class says that they do the same; a container's says nothing.
    chains = (
        [chain for chain in chains if len(chain.links) > 2 or (chain.alike and chain.named)]
        or [chain for chain in chains if chain.alike]
        or chains
    )
    if not chains:
        raise UnreadableTowerError(_nothing_found(module, trace, fits))
    best = _innermost(max(chains, key=lambda chain: chain.parameters), chains)
    rivals = [
        chain
        for chain in chains
        if chain is not best
        and not chain.holds(best)
        and not best.holds(chain)
        and chain.parameters >= RIVAL * best.parameters
    ]
    rest = _rest(best, trace, fits)
    longer = [Chain("", (*best.links, *rest), whole=False)] if rest else []
    if rivals or longer:
        listed = "\n  ".join(chain.shown() for chain in [*longer, best, *rivals])
        raise ValueError(
            f"the blocks of {type(module).__name__} are ambiguous; the argument `blocks` of "
            f"generic_vision or generic_text decides. Candidates:\n  {listed}"
        )
    return kept_whole(module, best.links)


def kept_whole(module: nn.Module, blocks: tuple[Firing, ...]) -> tuple[Firing, ...]:
    """Return blocks whose states nothing overwrites; features would be made of them later.

    Raises:
        ValueError: a state is changed in place by what runs after it.
    """
    for block in blocks:
        if block.overwritten:
            raise ValueError(
                f"what block {block.name!r} of {type(module).__name__} returns is changed in place "
                "by what runs after it, so it cannot be read: name the modules that change it in "
                "`blocks` in its stead, or have them not do it (inplace=False)"
            )
    return blocks


def _innermost(chain: Chain, chains: Sequence[Chain]) -> Chain:
    """Go into the one element that holds nearly all parameters, where it holds a chain."""
    for link in chain.links:
        alone = Chain(chain.parent, (link,), whole=False)
        inside = [other for other in chains if alone.holds(other)]
        if inside and alone.parameters > DOMINANT * chain.parameters:
            return _innermost(max(inside, key=lambda other: other.parameters), chains)
    return chain


def _rest(chain: Chain, trace: Trace, fits: Fits) -> list[Firing]:
    """Return blocks that run after a chain, where it would leave out the tower's end.

    What stands between stages (a pool, positions) breaks a chain. Further blocks of the last
    one's class go on with its work; others do where there is much of them.
    """
    last = chain.links[-1]
    after = trace.firings[trace.firings.index(last) + 1 :]
    around = [f for f in after if f.name and last.name.startswith(f"{f.name}.")]
    later = [
        firing
        for firing in _once(trace)
        if firing in after and firing.name and firing not in around
        # One token or cell is a feature: a head's, no map's.
        if firing.state is not None and firing.state.squeeze().ndim > 2
    ]
    # Also those that make a text shorter, whose states do not fit.
    alike = _outermost([firing for firing in later if type(firing.module) is type(last.module)])
    if alike:
        return alike
    rest = _outermost([firing for firing in later if _is_block(firing, fits)])
    held = Chain("", tuple(rest), whole=False).parameters
    return rest if rest and held >= RIVAL * chain.parameters else []


def _once(trace: Trace) -> list[Firing]:
    """Return the firings of modules that ran once: a hook cannot tell several calls apart."""
    counts = Counter(firing.name for firing in trace.firings)
    return [firing for firing in trace.firings if counts[firing.name] == 1]


def _outermost(firings: Sequence[Firing]) -> list[Firing]:
    names = [f"{firing.name}." for firing in firings]
    return [f for f in firings if not any(f.name.startswith(name) for name in names)]


def _chains(module: nn.Module, trace: Trace, fits: Fits) -> Iterator[Chain]:
    once = {firing.name: (i, firing) for i, firing in enumerate(_once(trace))}
    for parent, owner in module.named_modules():
        names = [f"{parent}.{child}" if parent else child for child, _ in owner.named_children()]
        fired = [firing for _, firing in sorted(once[n] for n in names if n in once)]
        run: list[Firing] = []
        for firing in [*fired, None]:
            linked = firing is not None and _is_block(firing, fits)
            if run and not (linked and firing is not None and firing.given is run[-1].state):
                if len(run) > 1:
                    yield Chain(parent, tuple(run), whole=len(run) == len(names))
                run = []
            if linked and firing is not None:
                run.append(firing)


def _is_block(firing: Firing, fits: Fits) -> bool:
    """Leaves are no blocks: a convolution and its activation would make a chain."""
    composed = next(firing.module.children(), None) is not None
    return composed and _could_be_block(firing, fits)


def _could_be_block(firing: Firing, fits: Fits) -> bool:
    owns = next(firing.module.parameters(), None) is not None
    return owns and firing.state is not None and fits(firing.state)


def _named(
    module: nn.Module, trace: Trace, fits: Fits, blocks: str | Sequence[str]
) -> tuple[Firing, ...]:
    names = list(_children(module, blocks)) if isinstance(blocks, str) else list(blocks)
    if not names:
        raise ValueError(f"blocks={blocks!r} names no module: name at least one block")
    known = {name for name, _ in module.named_modules()}
    found: list[tuple[int, Firing]] = []
    for name in names:
        if name not in known:
            raise ValueError(f"{type(module).__name__} has no module {name!r}, as blocks= names it")
        firings = [(i, f) for i, f in enumerate(trace.firings) if f.name == name]
        if len(firings) != 1:
            raise ValueError(
                f"block {name!r} ran {len(firings)} times in a trial forward; a block must run "
                "once, since a hook cannot tell one call from the next: name other blocks"
            )
        state = firings[0][1].state
        if state is None or not fits(state):
            shape = "no tensor" if state is None else f"a tensor of shape {tuple(state.shape)}"
            raise ValueError(
                f"block {name!r} returned {shape}; a state has the batch first (or second, for "
                "tokens), three or four dimensions, and in a text a row for each token: name other "
                "blocks"
            )
        found.append(firings[0])
    if found != sorted(found, key=lambda pair: pair[0]):
        order = [firing.name for _, firing in sorted(found, key=lambda pair: pair[0])]
        raise ValueError(f"blocks= must be in the order in which they run: {order}")
    return tuple(firing for _, firing in found)


def _children(module: nn.Module, name: str) -> Iterator[str]:
    try:
        owner = module.get_submodule(name)
    except AttributeError:
        lists = [n for n, m in module.named_modules() if isinstance(m, nn.ModuleList) and n]
        raise ValueError(
            f"{type(module).__name__} has no module {name!r}, as blocks= names it; "
            f"lists of modules in it: {lists}"
        ) from None
    yield from (f"{name}.{child}" for child, _ in owner.named_children())


def _nothing_found(module: nn.Module, trace: Trace, fits: Fits) -> str:
    counts = Counter(firing.name for firing in trace.firings)
    again = {f.name: counts[f.name] for f in trace.firings if counts[f.name] > 1}
    states = {f.name for f in trace.firings if _is_block(f, fits)}
    text = (
        f"no chain of blocks was found in {type(module).__name__}: at least two children of one "
        "module that run once each, the next on what the one before returned"
    )
    repeated = [f"{name} ({times} times)" for name, times in again.items() if name in states]
    if repeated:
        text += f". These ran more than once, where a hook cannot tell calls apart: {repeated}"
    text += ". Where it has blocks of another kind, name them: the argument `blocks` decides"
    if seen := _sets(module, trace, lambda firing: _could_be_block(firing, fits)):
        text += ". These return what could be a state:"
    elif seen := _sets(module, trace, lambda firing: len(firing.shape) > 2):
        text += ". Nothing that runs for every block returns what could be a state; found were:"
    return "\n  ".join([text, *(chain.shown() for chain in seen)])


def _sets(module: nn.Module, trace: Trace, wanted: Callable[[Firing], bool]) -> list[Chain]:
    """Return sets of modules that could be blocks: their names differ in a number only.

    Those with most parameters come first; what lies inside another set is left out.
    """
    sets: dict[tuple[str, type[nn.Module]], list[Firing]] = {}
    for firing in _once(trace):
        pieces = ["*" if piece.isdigit() else piece for piece in firing.name.split(".")]
        if "*" in pieces and wanted(firing):
            sets.setdefault((".".join(pieces), type(firing.module)), []).append(firing)
    several = [firings for firings in sets.values() if len(firings) > 1]
    outer = _outermost([firing for firings in several for firing in firings])
    chains = [_set_of(module, firings) for firings in several if firings[0] in outer]
    return sorted(chains, key=lambda chain: chain.parameters, reverse=True)[:SHOWN]


def _set_of(module: nn.Module, firings: Sequence[Firing]) -> Chain:
    parent = firings[0].name.rpartition(".")[0]
    children = {name for name, _ in module.get_submodule(parent).named_children()}
    names = {firing.name.removeprefix(f"{parent}.") for firing in firings}
    return Chain(parent, tuple(firings), whole=names == children)
