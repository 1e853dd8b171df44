"""The parts of a model's configuration: one file each, with the dataclass, its checks and both translations.

A part is a frozen dataclass with two classmethods, ``from_keys(keys, name, *context)`` for yacs and
``from_lazy(node, *context)`` for LazyConfig; one that only one of them can say lacks the other. ``to_keys`` gives
the yacs keys back. `tf_d2.config.table` says which name is which part, and what ``context`` each kind gets.
"""
