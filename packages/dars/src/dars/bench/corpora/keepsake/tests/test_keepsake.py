import pytest
from keepsake import Cache, ManualClock, memoise, parse_size
from keepsake.order import UseOrder
from keepsake.sizes import size_of


def test_clock_advances():
    clock = ManualClock(5)
    clock.advance(2)
    assert clock() == 7


def test_clock_does_not_run_backwards():
    with pytest.raises(ValueError, match="backwards"):
        ManualClock().advance(-1)


def test_plain_size():
    assert parse_size("12") == 12


def test_sizes_with_units():
    assert [parse_size(text) for text in ("4k", "2M", "1Ki", "1.5 mi")] == [4000, 2000000, 1024, 1572864]


def test_no_size():
    with pytest.raises(ValueError, match="no size"):
        parse_size("large")


def test_unknown_unit():
    with pytest.raises(ValueError, match="no size"):
        parse_size("3 parsecs")


def test_size_of_texts():
    assert size_of("abc") == 3


def test_empty_values_count_one():
    assert size_of("") == 1


def test_size_of_numbers():
    assert size_of(300) == 1


def test_order_of_use():
    order = UseOrder()
    for key in "abca":
        order.use(key)
    assert list(order) == ["b", "c", "a"]


def test_oldest():
    order = UseOrder()
    order.use("a")
    order.use("b")
    assert order.oldest() == "a"


def test_rarest_is_used_least():
    order = UseOrder()
    for key in "aabbbc":
        order.use(key)
    assert order.rarest() == "c"


def test_rarest_of_several_is_the_oldest():
    order = UseOrder()
    for key in "abba":
        order.use(key)
    assert order.rarest() == "b"


def test_uses_are_counted():
    order = UseOrder()
    order.use("a")
    order.use("a")
    assert (order.uses("a"), order.uses("b")) == (2, 0)


def test_dropped_key_is_gone():
    order = UseOrder()
    order.use("a")
    order.drop("a")
    assert len(order) == 0


def test_put_and_get():
    cache = Cache(2)
    cache.put("a", 1)
    assert cache.get("a") == 1


def test_get_of_an_unknown_key():
    assert Cache(2).get("a", "none") == "none"


def test_limit_has_to_be_positive():
    with pytest.raises(ValueError, match="hold something"):
        Cache(0)


def test_smallest_cache():
    cache = Cache(1)
    assert cache.put("a", 1)
    assert cache.get("a") == 1


def test_unknown_policy():
    with pytest.raises(ValueError, match="no policy"):
        Cache(2, policy="fifo")


def test_oldest_goes_first():
    cache = Cache(2)
    for key in "abc":
        cache.put(key, key)
    assert [key in cache for key in "abc"] == [False, True, True]


def test_reading_counts_as_use():
    cache = Cache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.get("a")
    cache.put("c", 3)
    assert [key in cache for key in "abc"] == [True, False, True]


def test_rarest_goes_first():
    cache = Cache(2, policy="lfu")
    cache.put("a", 1)
    cache.put("b", 2)
    cache.get("a")
    cache.get("b")
    cache.get("a")
    cache.put("c", 3)
    assert [key in cache for key in "abc"] == [True, False, True]


def test_putting_again_replaces():
    cache = Cache(3)
    cache.put("a", "xx")
    cache.put("a", "yyy")
    assert (cache.get("a"), cache.total(), cache.evictions) == ("yyy", 3, 0)


def test_large_value_is_refused():
    cache = Cache(3)
    assert not cache.put("a", "long text")
    assert len(cache) == 0


def test_value_as_large_as_the_cache():
    cache = Cache(3)
    assert cache.put("a", "abc")
    assert cache.get("a") == "abc"


def test_large_value_moves_several():
    cache = Cache(4)
    for key in "abcd":
        cache.put(key, 1)
    cache.put("e", "xyz")
    assert (cache.evictions, len(cache)) == (3, 2)


def test_total_size():
    cache = Cache(9)
    cache.put("a", "xyz")
    cache.put("b", [1, 2])
    assert cache.total() == 5


def test_value_expires():
    clock = ManualClock()
    cache = Cache(2, ttl=10, clock=clock)
    cache.put("a", 1)
    clock.advance(9)
    assert "a" in cache
    clock.advance(1)
    assert "a" not in cache


def test_own_time_of_a_value():
    clock = ManualClock()
    cache = Cache(2, ttl=10, clock=clock)
    cache.put("a", 1, ttl=3)
    clock.advance(5)
    assert cache.get("a") is None


def test_without_time_nothing_expires():
    clock = ManualClock()
    cache = Cache(2, clock=clock)
    cache.put("a", 1)
    clock.advance(1e9)
    assert cache.get("a") == 1


def test_expire_counts():
    clock = ManualClock()
    cache = Cache(5, ttl=4, clock=clock)
    cache.put("a", 1)
    cache.put("b", 2)
    clock.advance(3)
    cache.put("c", 3)
    clock.advance(2)
    assert cache.expire() == 2


def test_expired_values_make_room():
    clock = ManualClock()
    cache = Cache(2, clock=clock)
    cache.put("a", 1)
    cache.put("b", 2, ttl=1)
    clock.advance(2)
    cache.put("c", 3)
    assert (cache.get("a"), cache.evictions) == (1, 0)


def test_length_leaves_out_the_expired():
    clock = ManualClock()
    cache = Cache(5, ttl=4, clock=clock)
    cache.put("a", 1)
    clock.advance(4)
    assert len(cache) == 0


def test_time_left():
    clock = ManualClock()
    cache = Cache(2, ttl=10, clock=clock)
    cache.put("a", 1)
    clock.advance(4)
    assert cache.left("a") == 6


def test_time_left_is_never_negative():
    clock = ManualClock()
    cache = Cache(2, ttl=10, clock=clock)
    cache.put("a", 1)
    clock.advance(40)
    assert cache.left("a") == 0


def test_time_left_of_what_stays():
    cache = Cache(2)
    cache.put("a", 1)
    assert cache.left("a") is None


def test_putting_again_renews():
    clock = ManualClock()
    cache = Cache(2, ttl=10, clock=clock)
    cache.put("a", 1)
    clock.advance(6)
    cache.put("a", 2)
    clock.advance(6)
    assert cache.get("a") == 2


def test_forgetting_twice():
    cache = Cache(2)
    cache.put("a", 1)
    cache.forget("a")
    cache.forget("a")
    assert len(cache) == 0


def test_hit_rate():
    cache = Cache(2)
    cache.put("a", 1)
    for key in "aaab":
        cache.get(key)
    assert cache.hit_rate() == 0.75


def test_hit_rate_of_nothing():
    assert Cache(2).hit_rate() == 0


def test_memoised_function_is_called_once():
    calls = []
    function = memoise(lambda x: calls.append(x) or x * 2, Cache(5))
    assert [function(3), function(3), calls] == [6, 6, [3]]


def test_memoised_function_with_names():
    function = memoise(lambda x, y=1: x - y, Cache(5))
    assert [function(5), function(5, y=2), function(5, y=3)] == [4, 3, 2]


def test_memoised_none_is_remembered():
    calls = []
    function = memoise(lambda x: calls.append(x), Cache(5))
    function(1)
    function(1)
    assert calls == [1]
