"""Triton's interpreter, without the half of its time that it spends on replacing `triton.language` again and again.

It replaces the language's functions at each launch, puts them back afterwards, and in between replaces them anew at
each call of a device function, its own `tl.cdiv` and `tl.max` included: there they are what they are to become. Here a
call replaces what its launch has not replaced yet. What kernels compute is Triton's alone, as it was.
"""

from functools import cache
from types import ModuleType


def replace_once_a_launch() -> None:
    """For this process, from here on. Harmless when it has been done."""
    import triton.language as tl
    from triton.runtime import interpreter

    replace = interpreter._patch_lang
    if replace.__module__ == __name__:
        return
    replaced: set[ModuleType] = set()  # by the launch under way: one at a time, Triton keeps one grid for the process

    @cache
    def languages(fn):
        """Those of the two modules that the function sees: Triton replaces no others."""
        return frozenset(lang for lang in (tl, tl.core) if any(value is lang for value in fn.__globals__.values()))

    def patch_lang(fn):
        if languages(fn) and languages(fn) <= replaced:
            return interpreter._LangPatchScope()
        scope = replace(fn)
        replaced.update(languages(fn))
        restore = scope.restore

        def restored():
            replaced.clear()
            restore()

        scope.restore = restored
        return scope

    interpreter._patch_lang = patch_lang
