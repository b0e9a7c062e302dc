"""The cache drops its least recently used values."""

from __future__ import annotations

from airflow_provider_qwenimage.plugin.bounded_cache import BoundedCache


def test_values_beyond_the_weight_are_dropped_by_their_last_use() -> None:
    cache: BoundedCache[str] = BoundedCache(len, most_weight=6, most_values=9)
    for key in "abc":
        cache.put(key, key * 2)
    assert cache.get("a") == "aa"
    cache.put("d", "dd")
    assert cache.keys() == ["c", "a", "d"]
    assert cache.get("b") is None


def test_values_beyond_the_number_are_dropped() -> None:
    cache: BoundedCache[str] = BoundedCache(len, most_weight=99, most_values=2)
    for key in "abc":
        cache.put(key, key)
    assert cache.keys() == ["b", "c"]


def test_the_newest_value_is_kept_whatever_its_weight() -> None:
    cache: BoundedCache[str] = BoundedCache(len, most_weight=2, most_values=9)
    cache.put("a", "a")
    cache.put("b", "bbb")
    assert cache.keys() == ["b"]


def test_a_value_that_grew_is_weighed_again() -> None:
    cache: BoundedCache[list[int]] = BoundedCache(len, most_weight=3, most_values=9)
    first, second = cache.get_or_add("a", list), cache.get_or_add("b", list)
    cache.trim()
    assert cache.keys() == ["a", "b"]
    first.extend([1, 2])
    second.extend([1, 2])
    cache.trim()
    assert cache.keys() == ["b"]


def test_a_new_value_replaces_the_previous_one() -> None:
    cache: BoundedCache[str] = BoundedCache(len, most_weight=9, most_values=9)
    cache.put("a", "old")
    cache.put("a", "new")
    assert (cache.keys(), cache.get("a")) == (["a"], "new")
    cache.clear()
    assert cache.keys() == []


def test_without_values_nothing_is_dropped() -> None:
    cache: BoundedCache[str] = BoundedCache(len, most_weight=9, most_values=9)
    cache.trim()
    assert cache.keys() == []
