"""Networks in which several steps hear the same values, so that one pass serves all of them."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, final

from torch import Tensor

from armodels.networks.base import Network, State


class GroupedNetwork(Network):
    """A network whose steps come in groups: a step hears what was written before its group.

    Values of a group are independent given all before them, so that one pass gives the parameters
    of a whole group, and a walk takes as many passes as there are groups. Subclasses call
    ``_set_groups``, and their walks keep the event so far in ``state["x"]``, (B, D).
    """

    group_starts: tuple[int, ...]
    """The first step of each group; the first group begins at step 0."""

    _group_of: list[int]
    """The group of each step."""

    def _set_groups(self, starts: Sequence[int]) -> None:
        """Say at which steps groups begin."""
        self.group_starts = tuple(starts)
        sizes = [steps.stop - steps.start for steps in self.groups]
        self._group_of = [g for g, size in enumerate(sizes) for _ in range(size)]

    @property
    def groups(self) -> list[slice]:
        """The steps of each group."""
        return [slice(*ends) for ends in pairwise([*self.group_starts, self.num_steps])]

    @abstractmethod
    def group_params(
        self, values: Tensor | None, g: int, state: State, pack: Any
    ) -> tuple[Tensor, State]:
        """Parameters of all steps of group g, (B, n, P), and the state after them.

        Args:
            values: (B, K) of the step before the group; None before the first. They stand in
                ``state["x"]``, too.
            g: The group.
            state: The state before it.
            pack: What ``pack`` gave.
        """

    def write(self, values: Tensor, steps: slice, state: State) -> None:
        """Write values into the event so far.

        Args:
            values: (B, n, K).
            steps: Of them, n.
            state: In which the event stands.
        """
        state["x"][:, self.order_table[steps].flatten()] = values.flatten(1)

    @final
    def step(self, values: Tensor | None, s: int, state: State, pack: Any) -> tuple[Tensor, State]:
        """One row of what the group's pass said; the pass is taken where the group begins."""
        if values is not None:
            self.write(values[:, None], slice(s - 1, s), state)
        g = self._group_of[s]
        begun = self.group_starts[g]
        if s == begun:
            params, state = self.group_params(values, g, state, pack)
            state["group"] = params
        return state["group"][:, s - begun], state
