"""Where an answer comes from: explainers, and the verb `beholder.explain`."""

from beholder.core.verbs import callable_as

callable_as(__name__, "beholder.explain.verb:explain")
