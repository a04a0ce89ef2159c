"""Code of a notebook's cell, and of a file."""

from __future__ import annotations

import linecache
import os

from at_once_dask.user_code import notebook
from at_once_dask.user_code.modules import is_users_file


def test_code_of_a_file_is_no_cell() -> None:
    assert notebook.cell_of(__file__) is None
    assert notebook.shown(__file__) == __file__


def test_lines_that_are_known_stay() -> None:
    notebook.know(("In[1000]", ("first\n", "second\n")))

    linecache.checkcache()

    assert linecache.getline("In[1000]", 2) == "second\n"


def test_what_is_in_no_file_is_the_users() -> None:
    assert is_users_file("In[1]")
    assert is_users_file("<stdin>")
    assert not is_users_file("<frozen importlib._bootstrap>")
    assert not is_users_file(os.__file__)
