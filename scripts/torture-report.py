"""Writes what scripts/torture.sh counted into the table of docs/RELIABILITY.md: `torture-report.py LOG SECONDS`.

Only rows that the log has figures for are replaced; the others keep what they were measured to be."""

import os
import platform
import re
import subprocess
import sys
import time

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "docs", "RELIABILITY.md")
BEGIN, END = "<!-- torture: begin -->\n", "<!-- torture: end -->\n"


def rows(log):
    """What was counted: name of the row, runs, cuts or faults. A violation ends a test, so the log has none."""
    found = {}
    for kind, cuts, answers, names, wrong in re.findall(
            r"^power cuts, (\w+): (\d+) cuts, (\d+) answers, (\d+) names compared, (\d+) violations", log, re.M):
        found[f"power cuts, {kind}"] = (f"{answers} answers, {names} names compared", f"{cuts} cuts", wrong)
    for died, rounds, told in re.findall(r"^(\d+) of (\d+) servers died in the middle; (\d+) files told", log, re.M):
        found["servers killed with -9"] = (f"{rounds} servers, {told} files told", f"{died} kills in the middle", "0")
    for died in re.findall(r"^one upload outlived (\d+) servers", log, re.M):
        found["one upload, servers killed under it"] = ("1 upload", f"{died} kills", "0")
    for again, runs in re.findall(r"^(\d+) of (\d+) uploads needed another connection", log, re.M):
        found["connections cut round the answers"] = (f"{runs} uploads", f"{again} that hit", "0")
    for calls, tried, hit in re.findall(
            r"^calls of the reference: (\d+), .*faults tried: (\d+) of \d+, of which (\d+) hit a call", log, re.M):
        found["every file system call fails"] = (f"{tried} runs of {calls} calls", f"{hit} faults that hit", "0")
    for name, moved, cuts, again, wrong in re.findall(
            r"^links, (.+?): (\d+ MiB), (\d+) cuts, (.+), (\d+) violations", log, re.M):
        found[f"a link with {name}"] = (f"{moved} up and down, {again}", f"{cuts} cuts", wrong)
    for told, total in re.findall(r"^rotten files: (\d+) of (\d+) found", log, re.M):
        found["files that rot"] = (f"{total} files", f"{told} flipped bits, all found", "0")
    return found


def main():
    with open(sys.argv[1], encoding="utf-8", errors="replace") as file:
        found = rows(file.read())
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    before, rest = page.split(BEGIN, 1)
    table, after = rest.split(END, 1)
    kept = dict(re.findall(r"^\| ([^|]+) \| (.*)$", table, re.M))
    kept = {name: row for name, row in kept.items() if name != "what"}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    when = f"{time.strftime('%Y-%m-%d')}, {commit or 'no commit'}, {platform.system()} {platform.release()}"
    for name, (runs, cuts, wrong) in found.items():
        kept[name] = f"{runs} | {cuts} | {wrong} | {when} |"
    lines = ["| what | runs | cuts or faults | violations | when and where |\n", "|---|---|---|---|---|\n"]
    lines += [f"| {name} | {row}\n" for name, row in kept.items()]
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(before + BEGIN + "".join(lines) + END + after)
    print(f"{len(found)} rows of docs/RELIABILITY.md were written")


if __name__ == "__main__":
    main()
