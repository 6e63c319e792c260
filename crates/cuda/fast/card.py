#!/usr/bin/env python3
"""Runs the kernels of this folder on a card, beside PyTorch's on the same card: errors, equal bits, and speed.

    ./card.py [CUBINS]    one line of JSON for each figure; CUBINS has what cubins.py --save compiled

Takes PyTorch and the driver. A section that fails says so in one line, and the others go on.
"""

import ctypes
import functools
import json
import os
import statistics
import sys
import traceback

import torch

CUBINS = sys.argv[1] if len(sys.argv) > 1 else "target/gpu/cubins"
ONLY = sys.argv[2].split(",") if len(sys.argv) > 2 else []
cuda = ctypes.CDLL("libcuda.so.1")
BF16, F32 = torch.bfloat16, torch.float32


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def check(code: int, call: str) -> None:
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{call}: {code} {text.value}")


torch.cuda.init()
torch.zeros(1, device="cuda")
torch.manual_seed(1)
SM = torch.cuda.get_device_properties(0).multi_processor_count
modules: dict[str, ctypes.c_void_p] = {}
functions: dict[str, ctypes.c_void_p] = {}


def function(file: str, kernel: str, shared: int) -> ctypes.c_void_p:
    name = file.replace("/", "-").removesuffix(".cu")
    if name not in modules:
        module = ctypes.c_void_p()
        with open(os.path.join(CUBINS, name + ".cubin"), "rb") as image:
            check(cuda.cuModuleLoadData(ctypes.byref(module), image.read()), f"load {name}")
        modules[name] = module
    if kernel not in functions:
        found = ctypes.c_void_p()
        check(cuda.cuModuleGetFunction(ctypes.byref(found), modules[name], kernel.encode()), kernel)
        functions[kernel] = found
    if shared > 48 << 10:
        check(cuda.cuFuncSetAttribute(functions[kernel], 8, shared), f"shared memory of {kernel}")
    return functions[kernel]


class TensorMap:
    """A TMA descriptor of a matrix [rows, cols] with this row length, in boxes."""

    def __init__(self, place: int, bytes_each: int, rows: int, cols: int, stride: int, box_rows: int, box_cols: int):
        self.memory = ctypes.create_string_buffer(256)
        at = (ctypes.addressof(self.memory) + 63) & ~63
        self.at = at
        code = cuda.cuTensorMapEncodeTiled(
            ctypes.c_void_p(at), 9 if bytes_each == 2 else 0, 2, ctypes.c_void_p(place),
            (ctypes.c_uint64 * 2)(cols, rows), (ctypes.c_uint64 * 1)(stride * bytes_each),
            (ctypes.c_uint32 * 2)(box_cols, box_rows), (ctypes.c_uint32 * 2)(1, 1), 0, 3, 2, 0,
        )
        check(code, "cuTensorMapEncodeTiled")


tensor_map = functools.cache(TensorMap)


def Map(of: torch.Tensor, rows: int, cols: int, stride: int, box_rows: int, box_cols: int = 64) -> TensorMap:
    """A descriptor, encoded once: it says nothing but what is in these numbers."""
    return tensor_map(of.data_ptr(), of.element_size(), rows, cols, stride, box_rows, box_cols)


class Long(int):
    """An argument of 64 bits."""


def launch(file: str, kernel: str, grid: tuple[int, ...], block: int, shared: int, *arguments: object) -> None:
    values: list[object] = []
    pointers = (ctypes.c_void_p * len(arguments))()
    for i, argument in enumerate(arguments):
        if isinstance(argument, TensorMap):
            pointers[i] = argument.at
            continue
        if argument is None:
            value = ctypes.c_void_p(0)
        elif isinstance(argument, torch.Tensor):
            value = ctypes.c_void_p(argument.data_ptr())
        elif isinstance(argument, Long):
            value = ctypes.c_int64(argument)
        elif isinstance(argument, int):
            value = ctypes.c_int32(argument)
        else:
            value = ctypes.c_float(argument)
        values.append(value)
        pointers[i] = ctypes.addressof(value)
    x, y, z = (*grid, 1, 1)[:3]
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    code = cuda.cuLaunchKernel(function(file, kernel, shared), x, y, z, block, 1, 1, shared, stream, pointers, None)
    check(code, kernel)


def normal(*shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device="cuda", dtype=F32) * scale).to(dtype)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, device="cuda", dtype=torch.int32)


def timed(run: object, times: int) -> float:
    """Median seconds between events before and behind a run."""
    took = []
    for _ in range(times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        took.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(took)


def captured(run: object, repetitions: int) -> object:
    """A graph of so many runs, whose launches then cost the host nothing; None where a run cannot be captured."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            run()  # takes workspaces of this stream
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repetitions):
                run()
    except Exception as problem:
        print(f"not captured: {str(problem)[:100]}", file=sys.stderr)
        torch.cuda.synchronize()
        return None
    return graph


def seconds(run: object, capture: bool = True) -> float:
    """Median seconds of a run on the card. Python takes 60 to 80 µs for a launch, so several runs are one graph, which
    is as long as two milliseconds at least."""
    for _ in range(2):
        run()
    repetitions = max(1, min(50, round(2e-3 / timed(run, 3))))
    graph = captured(run, repetitions) if capture else None
    if graph is None:
        return timed(run, 8)
    graph.replay()
    return timed(graph.replay, 8) / repetitions


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.double(), want.double()
    return float((got - want).norm() / want.norm())


def compare(name: str, flop: float, ours: object, theirs: object, capture: bool = True, **more: object) -> None:
    """Beside PyTorch's, of which `capture` says whether a graph may have it."""
    mine, other = seconds(ours), seconds(theirs, capture) if theirs else None
    figures = {"tflops": round(flop / mine / 1e12, 1), "ms": round(mine * 1e3, 4)}
    if other:
        figures |= {"torch_tflops": round(flop / other / 1e12, 1), "ratio": round(other / mine, 3)}
    say(name=name, **figures, **more)


# Products


HOPPER = "products/hopper.cu"


def product(kind: str, width: int, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, m: int, n: int, k: int,
            rows: int, parts: int = 1, offsets: torch.Tensor | None = None, runs: torch.Tensor | None = None,
            go_on: int = 0) -> None:
    f32 = "_f32" if out.dtype == F32 and kind != "dw" else ""
    stages, tile = {256: (4, 128), 128: (6, 128), 32: (12, 64)}[width]
    shared = stages * ((tile + width) * 128 + 16)
    if kind == "y":
        maps = Map(a, rows, k, k, tile), Map(b, parts * n, k, k, width)
    elif kind == "dx":
        maps = Map(a, rows, k, k, tile), Map(b, parts * k, n, n, 64)
    else:
        maps = Map(a, rows, m, m, 64), Map(b, rows, n, n, 64)
    launch(HOPPER, f"product_{kind}_{width}{f32}", (SM,), 384 if width > 32 else 256, shared, *maps, out, offsets,
           runs, parts, rows, m, n, k, go_on)


def products() -> None:
    for m, n, k in [(256, 512, 1024), (1000, 264, 136), (4096, 4096, 4096), (8192, 8192, 8192), (16384, 3072, 1024)]:
        a, w = normal(m, k), normal(n, k)
        dy = normal(m, n)
        for width in (128, 256):
            out = torch.full((m, n), float("nan"), device="cuda", dtype=BF16)
            product("y", width, a, w, out, m, n, k, m)
            e = error(out, a.float() @ w.float().T)
            again = torch.empty_like(out)
            product("y", width, a, w, again, m, n, k, m)
            one = torch.empty(1, n, device="cuda", dtype=BF16)
            row = m // 2 + 3
            product("y", width, a[row:row + 1], w, one, 1, n, k, 1)
            equal = bool((again == out).all()) and bool((one[0] == out[row]).all())
            compare(f"y {m}x{n}x{k} width {width}", 2 * m * n * k, lambda: product("y", width, a, w, out, m, n, k, m),
                    lambda: a @ w.T, error=e, equal=equal)
            dx = torch.full((m, k), float("nan"), device="cuda", dtype=BF16)
            product("dx", width, dy, w, dx, m, k, n, m)
            e = error(dx, dy.float() @ w.float())
            compare(f"dx {m}x{n}x{k} width {width}", 2 * m * n * k,
                    lambda: product("dx", width, dy, w, dx, m, k, n, m), lambda: dy @ w, error=e)
            dw = torch.full((n, k), float("nan"), device="cuda", dtype=F32)
            product("dw", width, dy, a, dw, n, k, 0, m)
            e = error(dw, dy.float().T @ a.float())
            compare(f"dw {m}x{n}x{k} width {width}", 2 * m * n * k, lambda: product("dw", width, dy, a, dw, n, k, 0, m),
                    lambda: dy.T @ a, error=e)
    # the widths agree, and the narrow tile with them
    m, n, k = 64, 1024, 2048
    a, w = normal(m, k), normal(n, k)
    outs = []
    for width in (32, 128, 256):
        outs.append(torch.empty(m, n, device="cuda", dtype=BF16))
        product("y", width, a, w, outs[-1], m, n, k, m)
    say(name="all widths of a tile", equal=bool((outs[0] == outs[1]).all() and (outs[1] == outs[2]).all()))


def grouped() -> None:
    parts, each, n, k = 64, 1024, 2048, 1024
    offsets = torch.arange(parts + 1, device="cuda", dtype=torch.int32) * each
    rows = parts * each
    a, w, dy = normal(rows, k), normal(parts, n, k), normal(rows, n)
    flop = 2 * rows * n * k
    for width in (128, 256):
        out = torch.empty(rows, n, device="cuda", dtype=BF16)
        product("y", width, a, w, out, rows, n, k, rows, parts, offsets)
        e = error(out.view(parts, each, n)[5], a.view(parts, each, k)[5].float() @ w[5].float().T)
        compare(f"experts y 64x1024x{n}x{k} width {width}", flop,
                lambda: product("y", width, a, w, out, rows, n, k, rows, parts, offsets),
                lambda: torch.bmm(a.view(parts, each, k), w.transpose(1, 2)), error=e)
        dx = torch.empty(rows, k, device="cuda", dtype=BF16)
        compare(f"experts dx width {width}", flop,
                lambda: product("dx", width, dy, w, dx, rows, k, n, rows, parts, offsets),
                lambda: torch.bmm(dy.view(parts, each, n), w))
        dw = torch.empty(parts, n, k, device="cuda", dtype=F32)
        compare(f"experts dw width {width}", flop,
                lambda: product("dw", width, dy, a, dw, n, k, 0, rows, parts, offsets),
                lambda: torch.bmm(dy.view(parts, each, n).transpose(1, 2), a.view(parts, each, k)),
                error=error(dw[5], dy.view(parts, each, n)[5].float().T @ a.view(parts, each, k)[5].float()))


def narrow() -> None:
    """Products of few rows: how much of the bandwidth."""
    for rows in (1, 16, 64):
        n, k = 14336, 4096
        ws = [normal(n, k) for _ in range(4)]
        a, out = normal(rows, k), torch.empty(rows, n, device="cuda", dtype=BF16)

        def ours() -> None:
            for w in ws:
                product("y", 32, a, w, out, rows, n, k, rows)

        def theirs() -> None:
            for w in ws:
                a @ w.T

        mine, other = seconds(ours), seconds(theirs)
        say(name=f"decoding y {rows}x{n}x{k}", gbps=round(4 * n * k * 2 / mine / 1e9),
            torch_gbps=round(4 * n * k * 2 / other / 1e9), error=error(out, a.float() @ ws[-1].float().T))


# Of each format its number, numbers and bytes of a block, where blocks have f16 scales, and bytes of coefficients.
PACKED = {"q4_0": (4, 32, 18, (0,), 1024), "q8_0": (3, 32, 34, (0,), 2048), "q4_k": (11, 256, 144, (0, 2), 1024),
          "q6_k": (12, 256, 210, (208,), 4096)}


class Packed:
    """A matrix of random blocks, as tiles and as numbers of bf16."""

    def __init__(self, name: str, n: int, k: int):
        self.name, self.n, self.k = name, n, k
        self.number, self.len, self.bytes, scales, self.coefficients = PACKED[name]
        blocks = torch.randint(0, 256, (n, k // self.len, self.bytes), device="cuda", dtype=torch.uint8)
        for at in scales:
            scale = normal(n, k // self.len, 1, dtype=torch.float16, scale=0.01)
            blocks[:, :, at:at + 2] = scale.view(torch.uint8).view(n, k // self.len, 2)
        self.size, self.tiles = blocks.numel(), torch.empty_like(blocks)
        launch("products/dequantise.cu", "to_tiles", (-(-self.size // 1024),), 256, 0, blocks, self.tiles, self.number,
               n, k, Long(self.size // 4))
        self.table = torch.tensor([self.number, 0], device="cuda", dtype=torch.int64)
        self.partial = torch.empty(-(-k // 512), 64, n, device="cuda", dtype=F32)
        self.counts = torch.zeros(-(-n // 64), device="cuda", dtype=torch.int32)
        self.w = torch.empty(n, k, device="cuda", dtype=BF16)

    def dequantise(self) -> None:
        launch("products/dequantise.cu", "dequantise", (-(-self.k // 128), -(-self.n // 16)), 256, 0, self.tiles,
               self.table, self.w, self.n, self.k, self.k)

    def few(self, x: torch.Tensor, y: torch.Tensor) -> None:
        rows = x.shape[0]
        width = min(width for width in (8, 16, 32, 64) if width >= rows)
        shared = width * 1024 + 4 * (16 * 512 // self.len * self.bytes + self.coefficients) + 32
        launch(f"products/packed/hopper_{self.name}.cu", f"packed_{self.name}_{width}",
               (-(-self.k // 512), -(-self.n // 64)), 128, shared, Map(x, rows, self.k, self.k, width), self.tiles,
               self.table, y, self.partial, self.counts, None, rows, self.n, self.k, self.k, 1)

    def many(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.dequantise()
        rows, (n, k) = x.shape[0], (self.n, self.k)
        launch("products/hopper_packed.cu", "segments_y_bf16", (SM,), 384, 6 * (32768 + 16), Map(x, rows, k, k, 128),
               Map(self.w, n, k, k, 128), y, None, 1, rows, n, k)


def packed() -> None:
    """Quantised weights: of few rows how much of the bandwidth, and the bits of many rows."""
    n, k = 14336, 4096
    for name in PACKED:
        ws = [Packed(name, n, k) for _ in range(4)]
        for rows in (1, 16, 64):
            x = normal(rows, k)
            y, other = (torch.full((rows, n), float("nan"), device="cuda", dtype=BF16) for _ in range(2))

            def ours() -> None:
                for w in ws:
                    w.few(x, y)

            ours()
            ws[-1].many(x, other)
            e = error(y, x.float() @ ws[-1].w.float().T)
            equal = bool((y == other).all())
            say(name=f"{name} y {rows}x{n}x{k}", gbps=round(4 * ws[0].size / seconds(ours) / 1e9), error=e, equal=equal)
        x, y = normal(4096, k), torch.empty(4096, n, device="cuda", dtype=BF16)
        took = seconds(lambda: ws[0].many(x, y))
        say(name=f"{name} y 4096x{n}x{k}", tflops=round(2 * 4096 * n * k / took / 1e12, 1),
            error=error(y, x.float() @ ws[0].w.float().T), dequantise_ms=round(seconds(ws[0].dequantise) * 1e3, 4))


# Attention


WIDTHS = {"64": (64, 64, 114760), "128": (128, 128, 229448), "192_128": (192, 128, 213064)}
DQ_SHARED = {"64": 65576, "128": 131112, "192_128": 163880}
DKV_SHARED = {"64": 114760, "128": 213064, "192_128": 172104}


class Attention:
    def __init__(self, name: str, heads: int, group: int, starts: list[int]):
        self.name, self.heads, self.group = name, heads, group
        self.dk, self.dv, self.shared_bytes = WIDTHS[name]
        self.own = 128 if name == "192_128" else self.dk
        self.starts, self.tokens = ids(*starts), starts[-1]
        self.lengths = [b - a for a, b in zip(starts, starts[1:])]
        self.kv_heads = heads // group
        self.q = normal(self.tokens, heads * self.dk)
        self.kv = normal(self.tokens, self.kv_heads * (self.own + self.dv))
        self.shared = normal(self.tokens, 64)
        self.scale = self.dk**-0.5
        self.out = torch.full((self.tokens, heads * self.dv), float("nan"), device="cuda", dtype=BF16)
        self.lse = torch.full((heads, self.tokens), float("nan"), device="cuda", dtype=F32)

    def flat(self) -> tuple:
        return (self.starts, len(self.lengths), self.tokens, self.heads, self.group, 0, self.dk, 0, self.own + self.dv,
                0, self.own, self.own + self.dv, self.scale)

    def tiles(self, rows: int) -> int:
        return sum(-(-length // rows) for length in self.lengths)

    def map(self, of: torch.Tensor, rows: int) -> TensorMap:
        return Map(of, of.shape[0], of.shape[1], of.shape[1], rows)

    def forward(self) -> None:
        q, kv, shared = self.map(self.q, 128), self.map(self.kv, 128), self.map(self.shared, 128)
        launch("attention/hopper_forward.cu", f"attention_{self.name}", (self.heads, self.tiles(128)), 384,
               self.shared_bytes, q, kv, shared, kv, self.out, self.heads * self.dv, self.lse, *self.flat())

    def backward(self, dout: torch.Tensor) -> None:
        launch("attention/sums.cu", "attention_delta_bf16", (-(-self.tokens * self.heads // 8),), 256, 0, self.out,
               dout, self.delta, self.tokens, self.heads, self.dv)
        maps = self.map(self.q, 128), self.map(self.kv, 64), self.map(self.shared, 64), self.map(self.kv, 64)
        launch("attention/hopper_backward.cu", f"attention_dq_{self.name}", (self.heads, self.tiles(128)), 384,
               DQ_SHARED[self.name], *maps, self.map(dout, 128), self.lse, self.delta, self.dq, self.q.shape[1],
               *self.flat())
        rows = 32 if self.name == "192_128" else 64
        maps = self.map(self.q, rows), self.map(self.kv, 128), self.map(self.shared, 128), self.map(self.kv, 128)
        launch("attention/hopper_backward.cu", f"attention_dkv_{self.name}", (self.kv_heads, self.tiles(128)), 384,
               DKV_SHARED[self.name], *maps, self.map(dout, rows), self.shifted("lse", self.lse),
               self.shifted("delta", self.delta), self.dkv, self.dv_at, self.kv.shape[1], self.kv.shape[1],
               self.dshared, *self.flat())
        if self.name == "192_128":
            launch("attention/sums.cu", "attention_shared_bf16", (-(-self.tokens * 64 // 256),), 256, 0, self.dshared,
                   self.dshared_out, self.tokens, self.kv_heads, 64, 0, 64)

    def shifted(self, name: str, of: torch.Tensor) -> Map:
        """The rows of attention_shift, each f32 standing for two columns."""
        stride = (of.numel() + 6) // 4 * 4
        rows = self.rows[name]
        launch("attention/sums.cu", "attention_shift", (-(-stride // 256),), 256, 0, of, rows, of.numel(), stride)
        return Map(rows.view(BF16), 4, 2 * stride, 2 * stride, 1)

    def gradients(self) -> None:
        stride = (self.heads * self.tokens + 6) // 4 * 4
        self.rows = {name: torch.empty(4, stride, device="cuda", dtype=F32) for name in ("lse", "delta")}
        self.delta = torch.empty(self.heads, self.tokens, device="cuda", dtype=F32)
        self.dq, self.dkv = torch.full_like(self.q, float("nan")), torch.full_like(self.kv, float("nan"))
        self.dshared = torch.empty(self.kv_heads, self.tokens, 64, device="cuda", dtype=F32)
        self.dshared_out = torch.empty(self.tokens, 64, device="cuda", dtype=BF16)
        self.dv_at = self.dkv  # the kernel adds v_offset

    def parts(self) -> tuple[torch.Tensor, ...]:
        """q, k, v [heads, T, width] as PyTorch has them."""
        t, kvh = self.tokens, self.kv_heads
        q = self.q.view(t, self.heads, self.dk).transpose(0, 1)
        kv = self.kv.view(t, kvh, self.own + self.dv)
        k = kv[..., : self.own]
        if self.dk > self.own:
            k = torch.cat((k, self.shared[:, None, :].expand(t, kvh, 64)), -1)
        k, v = k.transpose(0, 1), kv[..., self.own:].transpose(0, 1)
        return q, k.repeat_interleave(self.group, 0), v.repeat_interleave(self.group, 0)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: list[int], scale: float) -> torch.Tensor:
    outs = []
    for a, b in zip(starts, starts[1:]):
        s = (q[:, a:b] @ k[:, a:b].transpose(1, 2)) * scale
        s = s.masked_fill(torch.ones(b - a, b - a, device="cuda", dtype=torch.bool).triu(1), float("-inf"))
        outs.append(s.softmax(-1) @ v[:, a:b])
    return torch.cat(outs, 1)


def attention() -> None:
    for name, heads, group in [("64", 4, 2), ("128", 4, 2), ("192_128", 2, 1)]:
        starts = [0, 1, 140, 141, 410, 1700, 3000]
        x = Attention(name, heads, group, starts)
        x.forward()
        x.gradients()
        dout = normal(x.tokens, heads * x.dv)
        x.backward(dout)
        q, k, v = (part.float().detach().requires_grad_() for part in x.parts())
        want = attend(q, k, v, starts, x.scale)
        want.backward(dout.view(x.tokens, heads, x.dv).transpose(0, 1).float())
        merged = lambda t: t.transpose(0, 1).reshape(x.tokens, -1)
        e_out = error(x.out, merged(want.detach()))
        e_dq = error(x.dq, merged(q.grad))
        kg = k.grad.view(x.kv_heads, group, x.tokens, x.dk).sum(1)
        vg = v.grad.view(x.kv_heads, group, x.tokens, x.dv).sum(1)
        dkv = x.dkv.view(x.tokens, x.kv_heads, x.own + x.dv).transpose(0, 1)
        e_dk, e_dv = error(dkv[..., : x.own], kg[..., : x.own]), error(dkv[..., x.own:], vg)
        e_shared = error(x.dshared_out, kg[..., x.own:].sum(0)) if x.dk > x.own else 0
        first = x.out.clone(), x.dq.clone(), x.dkv.clone()
        x.forward()
        x.backward(dout)
        equal = all(bool((a == b).all()) for a, b in zip(first, (x.out, x.dq, x.dkv)))
        say(name=f"attention {name}", out=e_out, dq=e_dq, dk=e_dk, dv=e_dv, dshared=e_shared, equal=equal)
    for name, heads, group in [("64", 32, 1), ("128", 16, 1), ("192_128", 16, 1)]:
        batch, length = 4, 4096
        x = Attention(name, heads, group, [i * length for i in range(batch + 1)])
        x.gradients()
        x.forward()
        dout = normal(x.tokens, heads * x.dv)
        q, k, v = (part.reshape(heads, batch, length, -1).transpose(0, 1).contiguous().requires_grad_()
                   for part in x.parts())
        flop = batch * heads * length**2 * (x.dk + x.dv)  # half of it masked
        sdpa = torch.nn.functional.scaled_dot_product_attention
        compare(f"attention {name} 4k forward", flop, x.forward, lambda: sdpa(q, k, v, is_causal=True))
        out = sdpa(q, k, v, is_causal=True)
        d = dout.view(batch, length, heads, x.dv).transpose(1, 2).contiguous()
        back = batch * heads * length**2 * (3 * x.dk + 2 * x.dv)
        compare(f"attention {name} 4k backward", back, lambda: x.backward(dout),
                lambda: torch.autograd.grad(out, (q, k, v), d, retain_graph=True), capture=False)


PAGED = {"64": (139264, 147456), "128": (212992, 229376), "192_128": (188416, 212992)}


def paged() -> None:
    """Decoding over pages: the bits of the forward pass, and bandwidth."""
    for name, heads, group, sequences, length in [("64", 16, 4, 4, 700), ("128", 16, 4, 4, 700),
                                                  ("192_128", 4, 1, 4, 700), ("128", 32, 4, 64, 4096),
                                                  ("64", 32, 4, 64, 4096), ("128", 32, 4, 1, 16384)]:
        starts = [i * length for i in range(sequences + 1)]
        x = Attention(name, heads, group, starts)
        x.forward()
        per = -(-length // 16)
        hk, row = x.kv_heads, x.kv_heads * (x.own + x.dv) + (64 if x.dk > x.own else 0)
        cache = torch.zeros(sequences * per, 16, row, device="cuda", dtype=BF16)
        flat = torch.cat((x.kv, x.shared), 1) if x.dk > x.own else x.kv
        padded = torch.zeros(sequences, per * 16, row, device="cuda", dtype=BF16)
        padded[:, :length] = flat.view(sequences, length, row)
        table = torch.randperm(sequences * per, device="cuda").int()
        cache[table.long()] = padded.view(-1, 16, row)
        past = ids(*([length - 1] * sequences))
        new = ids(*range(sequences + 1))
        q = x.q.view(sequences, length, -1)[:, -1].contiguous()
        out = torch.full((sequences, heads * x.dv), float("nan"), device="cuda", dtype=BF16)
        splits = 1 if name == "192_128" else -(-length // 1024)
        part_o = torch.empty(splits, sequences, heads, x.dv, device="cuda")
        part_ml = torch.empty(splits, sequences, heads, 2, device="cuda")

        def run() -> None:
            launch("attention/hopper_paged.cu", f"paged_{name}", (hk, sequences * 2, splits), 128, PAGED[name][0], q,
                   cache, out, heads * x.dv, table, per, Long(16 * row), row, x.own + x.dv, 0, x.own,
                   hk * (x.own + x.dv), past, new, sequences, heads, group, 0, x.dk, heads * x.dk, x.scale, part_o,
                   part_ml, sequences)
            if splits > 1:
                launch("attention/sums.cu", "attention_join", (-(-sequences * heads // 8),), 256, 0, part_o, part_ml,
                       sequences, heads, past, new, x.scale, 1024, x.dv, out, Long(heads * x.dv), Long(x.dv))

        run()
        last = x.out.view(sequences, length, -1)[:, -1]
        took = seconds(run)
        say(name=f"paged {name} {sequences}x{length}", equal=bool((out == last).all()), ms=round(took * 1e3, 4),
            gbps=round(sequences * length * row * 2 / took / 1e9))


# Head


def head() -> None:
    for tokens, vocab, width in [(1000, 5000, 256), (16384, 32768, 1024)]:
        x, w = normal(tokens, width), normal(vocab, width, scale=width**-0.5)
        targets = torch.randint(0, vocab, (tokens,), device="cuda", dtype=torch.int32)
        count = -(-vocab // 128)
        parts, logit = torch.empty(count, tokens, 2, device="cuda"), torch.empty(tokens, device="cuda")
        logp, lse = torch.empty(tokens, device="cuda"), torch.empty(tokens, device="cuda")

        def run() -> None:
            launch("head/hopper.cu", "head_stats", (SM,), 384, 196704, Map(x, tokens, width, width, 128),
                   Map(w, vocab, width, width, 128), tokens, vocab, width, parts, logit, targets)
            launch("head/join.cu", "head_join", (-(-tokens // 256),), 256, 0, parts, logit, targets, logp, lse, tokens,
                   count)

        def theirs() -> torch.Tensor:
            return torch.nn.functional.cross_entropy(x @ w.T, targets.long(), reduction="none")

        run()
        want = -torch.nn.functional.cross_entropy((x.float() @ w.float().T), targets.long(), reduction="none")
        compare(f"head {tokens}x{vocab}x{width}", 2 * tokens * vocab * width, run, theirs, error=error(logp, want))


def fp8() -> None:
    for m, n, k in [(512, 512, 512), (8192, 8192, 8192), (16384, 4096, 2048)]:
        a, w = normal(m, k), normal(n, k)
        qa, qw = (torch.empty(x.shape, device="cuda", dtype=torch.uint8) for x in (a, w))
        qt = torch.empty(k, n, device="cuda", dtype=torch.uint8)
        sa = torch.empty(k // 128, m, device="cuda")
        sw, st = torch.empty(n // 128, k // 128, device="cuda"), torch.empty(k // 128, n // 128, device="cuda")
        out = torch.empty(m, n, device="cuda", dtype=BF16)

        def quantise() -> None:
            launch("products/fp8.cu", "fp8_rows", (-(-m * (k // 128) // 8),), 256, 0, a, qa, sa, m, k, k, k)

        def run() -> None:
            launch("products/fp8.cu", "fp8_y", (SM,), 384, 196704, Map(qa, m, k, k, 128, 128),
                   Map(qw, n, k, k, 128, 128), sa, sw, out, None, 1, m, n, k, n)

        quantise()
        launch("products/fp8.cu", "fp8_blocks", (k // 128, n // 128), 256, 128 * 132 + 32, w, qw, qt, sw, st, n, k)
        run()
        compare(f"fp8 y {m}x{n}x{k}", 2 * m * n * k, run, lambda: a @ w.T, error=error(out, a.float() @ w.float().T),
                quantise_ms=round(seconds(quantise) * 1e3, 4))


def wgmma() -> None:
    """The same bits for all widths of the instruction, at all places; zeros add nothing."""
    a, b, c = normal(64, 64), normal(256, 64), torch.randn(64, 256, device="cuda")
    first, means, same, places, zeros = None, True, True, True, True

    def probe(n: int, ta: int, tb: int, rs: bool, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        wide = -(-n // 64) * 64
        x = (a.T if ta else a).contiguous()
        y = torch.zeros((64, wide) if tb else (n, 64), device="cuda", dtype=BF16)
        y[:] = torch.nn.functional.pad(b[:n].T, (0, wide - n)) if tb else b[:n]
        maps = Map(x, 64, 64, 64, 64), (Map(y, 64, wide, wide, 64) if tb else Map(y, n, 64, 64, n))
        out = torch.full((64, n), float("nan"), device="cuda")
        name = f"probe_rs_{n}" if rs else f"probe_ss_{n}_{ta}{tb}"
        launch("conformance/wgmma.cu", name, (1,), 128, 8192 + 32768 + 8, *maps, c[:, :n].contiguous(), out)
        torch.cuda.synchronize()
        return out

    for n in (32, 64, 128, 192, 256):
        for ta, tb, rs in [(0, 0, False), (0, 1, False), (1, 1, False), (0, 1, True)]:
            d = probe(n, ta, tb, rs, a, b, c)
            want = c[:, :n].double() + a.double() @ b[:n].double().T
            means &= error(d, want) < 1e-5
            first = d if first is None else first
            same &= bool((d[:, :32] == first).all())
            pi, pj = torch.randperm(64, device="cuda"), torch.randperm(n, device="cuda")
            moved = probe(n, ta, tb, rs, a[pi], b[:n][pj], c[:, :n][pi][:, pj])
            places &= bool((moved == d[pi][:, pj]).all())
            a2, b2 = a.clone(), b.clone()
            a2[:, 20:] = 0
            b2[:, 20:] *= 1e30
            zeros &= bool((probe(n, ta, tb, rs, a2, b, c) == probe(n, ta, tb, rs, a2, b2, c)).all())
            zeros &= bool((probe(n, ta, tb, rs, a2 * 0, b2, c) == c[:, :n]).all())
    say(name="wgmma", means_what_it_says=means, same_bits_for_all_widths=same, at_all_places=places,
        zeros_add_nothing=zeros)


def ceilings() -> None:
    x = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    y = torch.empty_like(x)
    say(name="ceilings", device=torch.cuda.get_device_name(), processors=SM,
        copy_gbps=round(2 * x.numel() / seconds(lambda: y.copy_(x)) / 1e9))


def main() -> None:
    for section in (ceilings, wgmma, products, grouped, narrow, packed, attention, paged, head, fp8):
        if ONLY and section.__name__ not in ONLY:
            continue
        try:
            section()
            torch.cuda.synchronize()
        except Exception as problem:  # the next section says more
            say(name=section.__name__, failed=str(problem)[:300], where=traceback.format_exc().splitlines()[-3:-1])
            if "700" in str(problem) or "CUDA error" in str(problem):
                break


if __name__ == "__main__":
    main()
