"""Steps of several variables whose penalty is known for all of them together.

`step` of one variable asks for the proximal map of its own point, but a group of weights that lies in several
variables needs all their points first. So the steps are begun, each up to its first question; the questions are
answered together; and the steps are begun again with that answer, up to the next. A step is a function without side
effects, so XLA computes once what is repeated.
"""

from keras_rda.optimizers.trained import Prox


class _Question(Exception):
    """What a step asks: `"prox"` with (u, step), or `"magnitude"` with w."""

    def __init__(self, kind, operands):
        super().__init__(kind)
        self.kind, self.operands = kind, operands


class _AnsweredProx(Prox):
    """A `Prox` that gives the answers that are known, in the order of the questions, and then asks."""

    def __init__(self, penalty, factor, answers):
        super().__init__(penalty, factor)
        self._answers = iter(answers)

    def __call__(self, u, step):
        return self._answer("prox", (u, self.factor * step))

    def magnitude(self, w):
        return self._answer("magnitude", w)

    def _answer(self, kind, operands):
        for answer in self._answers:
            return answer
        raise _Question(kind, operands)


def finish(steps, shared):
    """The results of steps that ask for a shared penalty.

    Args:
        steps: Dict from members of `shared` to pairs (function, `Prox`): a step is `function(prox)`.
        shared: The `penalties.shared.SharedGroups`.

    Returns:
        Dict from the same members to what their functions return.
    """
    answers = {member: [] for member in steps}
    while True:
        results, questions = {}, {}
        for member, (step, prox) in steps.items():
            try:
                results[member] = step(_AnsweredProx(prox.penalty, prox.factor, answers[member]))
            except _Question as question:
                questions[member] = question
        if not questions:
            return results
        operands = {member: question.operands for member, question in questions.items()}
        ask = shared.prox if next(iter(questions.values())).kind == "prox" else shared.magnitudes
        for member, answer in ask(operands).items():
            answers[member].append(answer)
