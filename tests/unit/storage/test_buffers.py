"""The buffer pool gives a buffer out again only when nobody refers to it."""

from __future__ import annotations

from controllerd.storage.buffers import BufferPool, round_up


def test_buffer_that_someone_keeps_a_view_of_is_not_reused() -> None:
    pool = BufferPool(1 << 20)
    buffer = pool.take(4096)
    kept = memoryview(buffer)[10:20]
    first = id(buffer)
    pool.retire(buffer)
    del buffer
    other = pool.take(4096)
    assert id(other) != first
    kept.release()
    again = pool.take(4096)
    assert id(again) == first
    assert pool.reused == 1


def test_one_kept_buffer_does_not_hide_the_free_ones() -> None:
    pool = BufferPool(1 << 20)
    buffers = [pool.take(4096) for _ in range(4)]
    kept = memoryview(buffers[0])[:1]
    while buffers:
        pool.retire(buffers.pop(0))
    for _ in range(3):
        pool.take(4096)
    assert pool.made == 4
    kept.release()


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    pool = BufferPool(8192)
    for _ in range(5):
        pool.retire(bytearray(4096))
        assert pool.held <= 8192
    pool.retire(bytearray(16_384))
    assert pool.held == 8192


def test_sizes_are_kept_apart() -> None:
    pool = BufferPool(1 << 20)
    pool.retire(bytearray(4096))
    assert len(pool.take(8192)) == 8192
    assert pool.held == 4096


def test_idle_pool_gives_its_memory_back() -> None:
    pool = BufferPool(1 << 20)
    pool.retire(pool.take(4096))
    pool.trim()
    assert pool.held == 4096
    pool.trim()
    assert pool.held == 0


def test_round_up() -> None:
    assert [round_up(size) for size in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]


def test_size_that_is_needed_no_more_makes_room_for_the_one_that_is() -> None:
    pool = BufferPool(64 << 10)
    for buffer in [pool.take(16 << 10) for _ in range(4)]:
        pool.retire(buffer)
    for _ in range(3):
        buffers = [pool.take(4096) for _ in range(8)]
        while buffers:
            pool.retire(buffers.pop())
    assert pool.held <= 64 << 10
    assert pool.made == 4 + 8
