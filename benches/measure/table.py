"""The table of what was kept, as Markdown."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path

from .options import MIXES
from .paths import DOCUMENT, RESULTS, ROOT

MARKERS = ("<!-- measured: begin -->", "<!-- measured: end -->")


def table() -> str:
    """What was kept, as Markdown."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    lines = [about(), ""]
    lines += verify_rows(found)
    others = ["", "| what | measured | baseline in the same run | ratio |", "|---|---|---|---|"]
    if measured := found.get("batch"):
        others.append(
            f"| BatchVerify of 100, 8 x 4 | {measured['rate']:,} verdicts/s, {measured['cpu_us']:.2f} us of CPU each | "
            f"Redis GET in pipelines of 100: {measured['redis_rate']:,}/s | **{measured['ratio']:.2f}** |"
        )
    if measured := found.get("latency"):
        others.append(
            f"| p99 of Verify at {measured['rate']:,}/s, half of the echo's peak | {measured['p99_us']:,.0f} us | "
            f"echo {measured['echo_p99_us']:,.0f} us | **{measured['ratio']:.2f}** |"
        )
    if measured := found.get("fairness"):
        alone = measured.pop("alone")
        for flood, times in measured.items():
            what, connections = flood.rsplit(", ", 1)
            others.append(
                f"| p99 of one caller's Verify, 200/s, beside four who flood with {what} on {connections} connections each | "
                f"{times['p99_us']:,} us | alone {alone['p99_us']:,} us | {times['p99_us'] / alone['p99_us']:.1f} |"
            )
    if measured := found.get("refusals"):
        for reason, what in (("UNKNOWN", "an unknown secret"), ("MALFORMED", "garbage")):
            others.append(
                f"| CPU of Verify for {what} | {measured[reason]['cpu_us']:.1f} us | "
                f"a key that is allowed {measured['OK']['cpu_us']:.1f} us | **{measured[reason]['ratio']:.2f}** |"
            )
    others += spread_rows(found) + many_rows(found) + change_rows(found)
    text = lines + (others if len(others) > 3 else [])
    if measured := found.get("inside"):
        text += inside_table(measured)
    return "\n".join(text)


def verify_rows(found: dict) -> list[str]:
    """One verdict in a call, beside an echo."""
    plain, tls = found.get("verify"), found.get("tls")
    if not (measured := plain or tls):
        return []
    said = (
        f"Verify of one key among {measured['keys']:,}, {measured['request_bytes']} bytes of request; the echo has the "
        "same bytes. CPU is that of the server."
    )
    rows = []
    for section, suffix in ((plain, ""), (tls, " over TLS")):
        named = section["rows"] if section else {}
        for mix in filter(named.__contains__, MIXES):
            row = named[mix]
            rows.append(
                f"| {mix.replace('x', ' x ')}{suffix} | {row['rate']:,} | {row['echo_rate']:,} | **{row['ratio']:.2f}** | "
                f"{row['ratios'][0]:.2f}-{row['ratios'][-1]:.2f} | {row['cpu_us']:.1f} us | {row['echo_cpu_us']:.1f} us | "
                f"**{row['cpu_ratio']:.2f}** | {row['like_ratio']:.2f}, {row['like_cpu_ratio']:.2f} | "
                f"{row['generator_cores']:.2f} cores, server {row['server_cores']:.2f} |"
            )
    if tls:
        version, suite, _ = next(iter(tls["rows"].values()))["tls"]
        said += f" TLS is {version} with {suite} and a certificate of ECDSA on P-256, in all of them."
    return [
        said,
        "",
        "| connections x calls | Verify/s | echo/s | ratio | lowest to highest | CPU a call | echo's | ratio | of an echo with our profile: rate, CPU | generator |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def spread_rows(found: dict) -> list[str]:
    """Verdicts about many different keys, and streams."""
    rows = []
    if measured := found.get("spread"):
        many, one = measured["many"], measured["one"]
        rows.append(
            f"| Verify of {measured['asked']:,} keys by chance, 8 x 32, by `loadgen` | {many['rate']:,}/s, {many['cpu_us']:.2f} us of CPU each "
            f"({generator(many)}) | one and the same key {one['rate']:,}/s, {one['cpu_us']:.2f} us | "
            f"**{measured['ratio']:.2f}**, CPU {measured['cpu_ratio']:.2f} |"
        )
    if measured := found.get("mixed"):
        mix, hits = measured["mix"], measured["hits"]
        rows.append(
            f"| Verify, 90 of 100 allowed, 5 unknown, 5 garbage, 8 x 32, by `loadgen` | {mix['rate']:,}/s, {mix['cpu_us']:.2f} us of CPU each | "
            f"all allowed {hits['rate']:,}/s, {hits['cpu_us']:.2f} us | **{measured['ratio']:.2f}**, CPU {measured['cpu_ratio']:.2f} |"
        )
    if measured := found.get("stream"):
        ours, echo, unary, batch = (measured[name] for name in ("stream", "echo", "verify", "batch"))
        rows += [
            f"| StreamVerify, 8 streams with 32 under way, by `loadgen` | {ours['rate']:,} verdicts/s, {ours['cpu_us']:.2f} us of CPU each "
            f"({generator(ours)}) | the stream of the stock echo {echo['rate']:,}/s, {echo['cpu_us']:.2f} us | "
            f"**{measured['ratio']:.2f}**, CPU {measured['cpu_ratio']:.2f} |",
            f"| the same beside Verify 8 x 32, by `loadgen` | | {unary['rate']:,}/s, {unary['cpu_us']:.2f} us ({generator(unary)}) | "
            f"**{measured['of_verify']:.2f}**, CPU {measured['cpu_of_verify']:.2f} |",
            f"| the same beside BatchVerify of 100, 8 x 4, by h2load | | {batch['rate']:,}/s, {batch['cpu_us']:.2f} us | "
            f"{ours['rate'] / batch['rate']:.2f}, CPU {ours['cpu_us'] / batch['cpu_us']:.2f} |",
        ]
    return rows


def generator(figures: dict) -> str:
    """Whether it is the generator that limits."""
    return f"`loadgen` {figures['generator_cpu_us']:.2f} us, {figures['generator_cores']:.2f} cores; server {figures['server_cores']:.2f}"


def many_rows(found: dict) -> list[str]:
    """What many keys change: the rate, the start, the memory."""
    rows = []
    for name in ("flat", "flat-many"):
        if measured := found.get(name):
            many, few, same, one = (measured[part] for part in ("many", "few", "same_asked", "one"))
            rows.append(
                f"| Verify with {measured['keys']:,} keys, of {measured['asked']:,} of them by chance, 8 x 32, by `loadgen` | {many['rate']:,}/s, "
                f"{many['cpu_us']:.2f} us of CPU each | with 1,000 keys, of all of them {few['rate']:,}/s, {few['cpu_us']:.2f} us | "
                f"**{measured['ratio']:.2f}**, CPU {measured['cpu_ratio']:.2f} |"
            )
            rows.append(
                f"| the same, of {measured['asked_of_few']:,} keys in both; of one in both | {same['rate']:,}/s; {one['rate']:,}/s | | "
                f"**{measured['same_asked_ratio']:.2f}**; {measured['one_ratio']:.2f} |"
            )
    for name in ("start", "start-many"):
        if measured := found.get(name):
            how = "nothing in the page cache" if measured["cold"] else "page cache warm"
            kill = (f"{measured[f'verdict_seconds_after_{end}']:.1f} s, {measured[f'seconds_after_{end}']:.1f} s" for end in ("kill", "stop"))
            rows += [
                f"| start with {measured['keys']:,} keys, {how}: to verdicts, to all else | **{measured['verdict_seconds']:.1f} s**, "
                f"{measured['seconds']:.1f} s, {measured['cpu_seconds']:.1f} s of CPU; resident {measured['rss_mib']:,} MiB, a minute later "
                f"{measured['rss_settled_mib']:,} MiB, at most {measured['rss_peak_mib']:,} MiB | | |",
                f"| the same after `kill -9` amid CreateKeys | {next(kill)} | after an orderly stop amid them {next(kill)} | "
                f"**{measured['kill_adds_verdict_seconds']:+.1f} s**, {measured['kill_adds_seconds']:+.1f} s |",
            ]
    return rows


def change_rows(found: dict) -> list[str]:
    """CreateKey."""
    measured = found.get("create")
    if not measured:
        return []
    return [
        f"| CreateKey, one at a time, durable, by h2load: median | {measured['median_us']:,} us, p99 {measured['p99_us']:,} us, "
        f"{measured['cpu_us']:.0f} us of CPU | a write and fdatasync of 512 bytes {measured['sync_us']:,} us | **{measured['ratio']:.2f}** |",
        f"| CreateKey, 256 at a time, durable, {measured['calls_256']:,} in a row, by h2load | {measured['rate_256']:,}/s, "
        f"{measured['cpu_us_256']:.0f} us of CPU each (server {measured['server_cores_256']:.2f} cores, h2load "
        f"{measured['generator_cores_256']:.2f}) | writes and fdatasyncs of 256 x 512 bytes {measured['plain_rate_256']:,}/s | "
        f"{measured['rate_256'] / measured['plain_rate_256']:.3f} |",
        f"| the same by a client of tonic | {measured['rate_256_tonic']:,}/s | | |",
    ]


def inside_table(measured: dict) -> list[str]:
    """What was measured in process."""
    decision = measured["decision"]
    lines = ["", "In process, without a wire. The keyed hash of a secret, with the check of its form, is the least that a verdict can cost.", ""]
    lines += ["| verdict | 1 thread | 2 threads | of the hash alone |", "|---|---|---|---|"]
    for case in ("hit", "unknown", "garbage", "hash"):
        one, two = (decision[f"threads_{threads}"][case] for threads in (1, 2))
        lines.append(f"| {case} | {one['ns']:.0f} ns | {two['ns']:.0f} ns | {one['ratio_to_hash'][0]:.2f} |")
    lines += ["", "| index | keys | bytes a key | loads, records/s | lookup and decision | applies a change | lookup while changes are applied: median, p99 |", "|---|---|---|---|---|---|---|"]
    for size, found in measured["index"].items():
        for name in ("index", "papaya", "locked_map"):
            if one := found.get(name):
                # What few keys weigh is lost in what the allocator keeps.
                weighs = f"{one['memory']['bytes_per_key']:,.0f}" if "memory" in one else ""
                lines.append(
                    f"| {name} | {int(size):,} | {weighs} | {one['load']['records_per_s']:,.0f} | "
                    f"{figure(one, 'lookup_ns')} ns | {figure(one, 'apply_ns')} ns | "
                    f"{figure(one, 'beside_writer_median_ns')}, {figure(one, 'beside_writer_p99_ns')} ns |"
                )
    lines += ["", "| committer: changes at a time | changes/s | a plain loop of writes and syncs | ratio | median | plain | p99 |", "|---|---|---|---|---|---|---|"]
    for under_way in (1, 64, 256):
        row = measured["committer"][f"concurrency_{under_way}"]
        rate, middle, p99 = (row[name] for name in ("commits_per_s", "median_us", "p99_us"))
        lines.append(
            f"| {under_way} | {rate['ours']:,.0f} | {rate['plain']:,.0f} | **{rate['ratio'][0]:.2f}** | {middle['ours']:,.0f} us | "
            f"{middle['plain']:,.0f} us | {p99['ours']:,.0f} us |"
        )
    return lines


def figure(one: dict, name: str) -> str:
    """A figure of the index, as a median of rounds."""
    return f"{one[name]['median']:,.0f}"


def about() -> str:
    """The machine and the versions, without any name of it."""
    def version(*command: str) -> str:
        return re.search(r"[\w./-]*\d+\.\d+[\w.-]*", subprocess.run(command, capture_output=True, text=True).stdout)[0]

    lock = (ROOT / "Cargo.lock").read_text()
    crates = {name: re.search(rf'name = "{name}"\nversion = "([\d.]+)"', lock)[1] for name in ("tonic", "hyper", "h2")}
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {memory:.0f} GiB, Linux {platform.release()}",
        f"rustc {version('rustc', '--version')}",
        *(f"{name} {number}" for name, number in crates.items()),
        f"h2load {version('h2load', '--version')}",
        f"Redis {version('redis-server', '--version')}",
    ]
    return f"Measured with {', '.join(parts)}. Servers and generators share the machine and talk over loopback."


def write() -> None:
    begin, end = MARKERS
    text = DOCUMENT.read_text()
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    DOCUMENT.write_text(f"{head}{begin}\n{table()}\n{end}{tail}")
