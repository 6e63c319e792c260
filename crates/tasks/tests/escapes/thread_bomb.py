import threading

stop = threading.Event()
threads = []
try:
    for _ in range(1000):
        threads.append(threading.Thread(target=stop.wait, daemon=True))
        threads[-1].start()
    assert False, "a thousand threads"
except (RuntimeError, MemoryError):
    pass
stop.set()
assert len(threads) < 100
