"""How good a model is: benchmarks, sections, the report, and the verb `beholder.evaluate`."""

from beholder.core.verbs import callable_as

callable_as(__name__, "beholder.evaluate.verb:evaluate")
