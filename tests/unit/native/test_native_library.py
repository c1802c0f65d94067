"""Finding, loading and calling the kernels; which instruction set a setting chooses."""

import os
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baseload.domain.errors import SettingsError
from baseload.engine.native import features
from baseload.engine.native import library as module
from baseload.engine.native.features import CpuFeatures
from baseload.engine.native.library import Library, load

ALL = CpuFeatures(avx2=True, avxvnni=True, avx512=True, amx=True, has_amx=True)


def add_one(x: jax.Array) -> jax.Array:
    return jax.ffi.ffi_call("bl_add_one", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 100_001])
def test_a_call_from_a_program_reaches_every_element(library: Library, size: int) -> None:
    x = jnp.arange(size, dtype=jnp.float32)
    np.testing.assert_array_equal(jax.jit(lambda x: add_one(add_one(x)))(x), np.arange(size) + 2.0)


def test_calls_from_many_threads_do_not_mix(library: Library) -> None:
    program = jax.jit(add_one)
    program(jnp.zeros(50_000)).block_until_ready()
    wrong = []

    def work(base: float) -> None:
        for _ in range(50):
            if not np.all(np.asarray(program(jnp.full(50_000, base))) == base + 1):
                wrong.append(base)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_number_of_threads_can_be_set(library: Library) -> None:
    default = library.threads
    assert default >= 1
    try:
        for count in (1, 3):
            library.set_threads(count)
            assert library.threads == count
            np.testing.assert_array_equal(jax.jit(add_one)(jnp.zeros(40_000)), np.ones(40_000))
    finally:
        library.set_threads(0)
    assert library.threads == default


def test_auto_takes_the_best_and_a_name_takes_that() -> None:
    assert features.choose("auto", ALL) == "amx"
    assert features.choose("auto", CpuFeatures(avx2=True, avxvnni=True)) == "avxvnni"
    assert features.choose("auto", CpuFeatures()) == "xla"
    assert features.choose("avx2", ALL) == "avx2"
    assert features.choose("xla", ALL) == "xla"


def test_what_cannot_be_had_is_refused_with_what_can() -> None:
    with pytest.raises(SettingsError, match="it has avx2, xla"):
        features.choose("avx512", CpuFeatures(avx2=True))
    with pytest.raises(SettingsError, match="choose one of"):
        features.choose("sse", ALL)


def test_without_a_built_library_there_is_only_xla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "_kernels.so"
    for content in (None, b"not a library"):
        if content is not None:
            broken.write_bytes(content)
        monkeypatch.setattr(module, "_FILE", broken)
        load.cache_clear()
        try:
            assert load() is None
            assert module.isa_for("auto") == "xla"
        finally:
            load.cache_clear()


def test_a_library_older_than_its_sources_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, source = tmp_path / "_kernels.so", tmp_path / "native" / "matmul" / "impl.h"
    monkeypatch.setattr(module, "_FILE", built)
    monkeypatch.setattr(module, "_SOURCES", tmp_path / "native")
    assert not module.is_stale()  # not built
    built.touch()
    assert not module.is_stale()  # installed whole: no sources
    source.parent.mkdir(parents=True)
    source.touch()
    os.utime(built, (100, 100))
    os.utime(source, (99, 99))
    assert not module.is_stale()
    os.utime(source, (101, 101))
    assert module.is_stale()
    tests = tmp_path / "native" / "tests" / "a_test.cc"
    source.unlink()
    tests.parent.mkdir()
    tests.touch()
    assert not module.is_stale()  # a test is no part of the library
