"""Optimizers in files: their configuration, and state of which what does not fit raises."""

import warnings
import zlib

import keras
import numpy as np
from keras import ops

from keras_rda.optimizers.exclusions import Exclusions


class CheckedState:
    """Mixin of a `keras.optimizers.Optimizer`: saves penalty and exclusions in its configuration, and a checksum of the
    state's layout with its state, which it restores all or not at all.

    Keras would warn and skip what does not fit. The optimizer has a `penalty`; it sets `_exclusions` and
    `_unbuilt_size`, the number of its variables before it is built, and in `build` `trained`, a list of `Trained`.
    """

    def get_config(self):
        config = {**super().get_config(), "exclusions": self._exclusions.get_config(self.built)}
        if self.penalty is not None:
            config["penalty"] = keras.saving.serialize_keras_object(self.penalty)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        exclusions = config.pop("exclusions", {})
        if "penalty" in config:
            config["penalty"] = keras.saving.deserialize_keras_object(config["penalty"], custom_objects=custom_objects)
        optimizer = super().from_config(config, custom_objects=custom_objects)
        optimizer._exclusions = Exclusions(cls.__name__, **exclusions)
        return optimizer

    def _checksum(self, built):
        """A checksum of what the state is made of, without the names of layers, which may change on loading."""
        slots = [",".join(trained.slots) for trained in self.trained] if built else []
        own = [variable.name for variable in self.variables[: self._unbuilt_size]]
        return zlib.crc32(";".join([type(self).__name__, *own, *slots]).encode())

    def save_own_variables(self, store):
        """Save the state, with a checksum of its layout."""
        super().save_own_variables(store)
        store["layout"] = np.array(self._checksum(self.built), "int64")

    def __deepcopy__(self, memo):
        """A copy that trains the same variables and goes on from the same state.

        Keras' own optimizers are copied by way of a file, which loses the state of one that is built.
        """
        copied = memo[id(self)] = type(self).from_config(self.get_config())
        if self.built:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what building has to say was said of this optimizer
                copied.build([trained.variable for trained in self.trained])
        for variable, own in zip(copied.variables, self.variables, strict=True):
            variable.assign(own)
        return copied

    def set_weights(self, weights):
        """Set all variables of a built optimizer from arrays in the order of `variables`."""
        if len(weights) != len(self.variables):
            raise ValueError(
                f"{type(self).__name__}.set_weights() takes {len(self.variables)} arrays, one for each of `variables`; "
                f"received {len(weights)}."
            )
        super().set_weights(weights)

    def load_own_variables(self, store):
        """Restore the state, or raise a `ValueError` that says what does not fit."""
        if self._starts_afresh(store):
            # Saved before the first step, when there are no slots yet; they start at zero.
            values = [
                store[str(i)] if i < self._unbuilt_size else ops.zeros(v.shape, v.dtype)
                for i, v in enumerate(self.variables)
            ]
        else:
            self._check_fits(store)
            values = [store[str(i)] for i in range(len(self.variables))]
        for variable, value in zip(self.variables, values, strict=True):
            if tuple(variable.shape) != tuple(value.shape):
                raise ValueError(
                    f"The state saved for {type(self).__name__} '{self.name}' has shape {tuple(value.shape)} where "
                    f"'{variable.path}' has {tuple(variable.shape)}: it belongs to another model or optimizer."
                )
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)

    def _starts_afresh(self, store):
        keys = store.keys()
        if len(keys) != self._unbuilt_size + 1 or "layout" not in keys:
            return False
        return int(np.array(store["layout"])) == self._checksum(built=False)

    def _check_fits(self, store):
        keys = store.keys()
        if len(keys) == len(self.variables) + 1 and "layout" in keys:
            if int(np.array(store["layout"])) == self._checksum(self.built):
                return
            received = "state of other variables"
        else:
            received = f"{len(keys)} arrays where {len(self.variables) + 1} are expected"
        hint = "" if self.built else "To resume, call optimizer.build(model.trainable_variables) before loading. "
        raise ValueError(
            f"The state saved for the optimizer does not fit {type(self).__name__} '{self.name}': {received}. Training "
            f"on would rewrite the model from sums that were lost. {hint}Compile the model with the optimizer (class, "
            "penalty, center, exclusions) that was saved, or, to train the loaded weights afresh, load them before "
            "compile(): load_model(path, compile=False). (Does another set of variables train than when the model was "
            "compiled, because layers were frozen, quantised or given LoRA? Compile it anew before it is saved.)"
        )
