"""The kernel as the controller and policies call it, many times a task: without a look at an arena's 33 types."""

from __future__ import annotations

from unfold_placement.core import kernel
from unfoldkit.jit import direct

advance = direct(kernel.advance)
settle = direct(kernel.settle)
touch = direct(kernel.touch)
wake = direct(kernel.wake)
first = direct(kernel.first)
assign = direct(kernel.assign)
every = direct(kernel.every)
wide_fits = direct(kernel.wide_fits)
give = direct(kernel.give)
take = direct(kernel.take)
hopeful = direct(kernel.hopeful)
