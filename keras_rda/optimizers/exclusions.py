"""Which variables the step leaves without penalty because the user said so."""

import collections
from collections.abc import Iterable

from keras_rda import kernels


class Exclusions:
    """The variables that `exclude_from_penalty` named, here or before the optimizer was saved.

    What is saved are names, paths, and once the optimizer is built positions, by which variables are found again when
    there are as many: names of variables may change when a model is loaded, positions do not.

    Args:
        owner: Name of the optimizer's class, for errors.
        paths, names: What was excluded as objects and by whole names.
        variables: How many variables the optimizer that was saved was built for, or None.
        penalty, weight_decay: The positions that were excluded from each. Keras does not save the latter itself.
        told: Whether variables were excluded as objects: then those without a name that were not are kernels.
    """

    def __init__(
        self,
        owner: str,
        paths: Iterable[str] = (),
        names: Iterable[str] = (),
        variables: int | None = None,
        penalty: Iterable[int] = (),
        weight_decay: Iterable[int] = (),
        told: bool = False,
    ) -> None:
        self._owner = owner
        self._saved_paths, self._names = list(paths), list(names)
        self._objects: dict[int, str] = {}  # by id, the path
        self._told = told
        self.settle(variables, penalty, weight_decay)

    def add(self, var_list, var_names):
        """Exclude variables, and all that whole names fit."""
        if not isinstance(var_names, (list, tuple, type(None))) or not all(isinstance(n, str) for n in var_names or ()):
            raise TypeError(f"var_names must be a list of strings; received {var_names!r}.")
        if not isinstance(var_list, (list, tuple, type(None))):
            raise TypeError(f"var_list must be a list of variables; received {type(var_list).__name__}.")
        if wrong := [v for v in var_list or () if not hasattr(v, "shape") or not getattr(v, "name", None)]:
            received = repr(wrong[0]) if isinstance(wrong[0], str) else type(wrong[0]).__name__
            raise TypeError(
                "var_list must be a list of variables of Keras, such as layer.trainable_variables; received "
                f"{received} in it. Names go in var_names."
            )
        self._objects |= {id(variable): kernels.variable_path(variable) for variable in var_list or ()}
        self._names += var_names or ()
        self._told = self._told or var_list is not None

    def settle(self, variables, penalty, weight_decay):
        """Keep the positions that an optimizer, built for so many variables, has excluded."""
        self._variables, self._penalty, self._weight_decay = variables, sorted(penalty), sorted(weight_decay)

    def check_names(self, variables):
        """Raise a `ValueError` if `variables`, which are penalised, may be tables of a torch module's embeddings."""
        nameless = [v for v in variables if len(v.shape) == 2 and kernels.is_nameless(kernels.variable_path(v))]
        if nameless and not self._told and self._variables is None:
            raise ValueError(
                f"{self._owner} cannot tell whether these variables are kernels, because they have no names, as those "
                "of a keras.layers.TorchModuleWrapper: "
                f"{ {kernels.variable_path(v): tuple(v.shape) for v in nameless} }. Say which of them are not, before "
                "training: optimizer.exclude_from_penalty(var_list=[…]), with the trainable_variables of the layers "
                "that wrap embeddings, or with an empty list if all are kernels."
            )

    def from_weight_decay(self, variables):
        """The positions in `variables` that had no weight decay when the optimizer was saved."""
        return set(self._weight_decay) if self._variables == len(variables) else set()

    def from_penalty(self, variables):
        """The positions in `variables` that are excluded from the penalty; a name without one raises."""
        paths = [kernels.variable_path(variable) for variable in variables]
        matches = [
            (name, {i for i, path in enumerate(paths) if kernels.longest_part(path, [name])}) for name in self._names
        ]
        for key, path in self._objects.items():
            matches.append((path, {i for i, variable in enumerate(variables) if id(variable) == key}))
        if self._variables == len(variables):
            return set(self._penalty).union(*(positions for _, positions in matches))
        for path, number in collections.Counter(self._saved_paths).items():
            same = {i for i, other in enumerate(paths) if f"/{path}".endswith(f"/{other}")}
            if len(same) > number:
                raise ValueError(
                    f"The exclusions of this {self._owner} were saved before it was built: {number} variables of the "
                    f"path {path!r}, which {len(same)} have. Create the optimizer anew and call exclude_from_penalty() "
                    "with the variables."
                )
            matches.append((path, same))
        if unmatched := sorted(name for name, positions in matches if not positions):
            raise ValueError(
                f"exclude_from_penalty() was given {unmatched}, which match none of the trainable variables {paths}."
            )
        return set().union(*(positions for _, positions in matches))

    def get_config(self, built):
        """The arguments, without the owner; positions once the optimizer is built, when they hold all exclusions."""
        paths = [*self._saved_paths, *self._objects.values()]
        config = {"paths": paths, "names": list(self._names), "told": self._told}
        if built:
            config |= {"variables": self._variables, "penalty": self._penalty, "weight_decay": self._weight_decay}
        return config
