"""Asks an installed fail2ban how it reads its configuration.

Standard input holds one JSON request a line: {"dir", "filter", "options"} for
a filter on its own, {"dir", "jail"} for a jail taken as enabled, {"time"} for
a time, {"growth", "time", "count"} for a ban time that grows. Standard output answers each with one line: what reaches fail2ban's server, or
{"error"}.
"""
import json
import logging
import sys

from fail2ban.client.filterreader import FilterReader
from fail2ban.client.jailreader import JailReader
from fail2ban.server.mytime import MyTime

from fail2ban.server.jail import Jail
from fail2ban.server.observer import ObserverThread

logging.disable(logging.CRITICAL)


def grown(options, time, count):
    jail = Jail("jail", backend="polling")
    for name, value in options.items():
        jail.setBanTimeExtra(name, value)
    incr = ObserverThread.BanTimeIncr(MyTime.str2seconds(time), count)
    return {"seconds": float(jail.getBanTimeExtra()["evformula"](incr))}


def collect(stream):
    out = {"failregex": [], "ignoreregex": [], "journalmatch": [], "options": {}}
    for command in stream:
        if command[0] == "config-error":
            return {"error": command[1]}
        if command[0] not in ("set", "multi-set") or len(command) < 4:
            continue
        name, rest = command[2], command[3:]
        if name in ("addfailregex", "addignoreregex"):
            values = rest[0] if command[0] == "multi-set" else rest
            out[name[3:]].extend(values)
        elif name == "addjournalmatch":
            out["journalmatch"].append(rest)
        elif name == "addignoreip":
            out["options"]["ignoreip"] = " ".join(rest)
        elif name not in ("addlogpath", "addaction", "action"):
            out["options"][name] = str(rest[0])
    return out


def answer(request, shared):
    try:
        if "growth" in request:
            return grown(request["growth"], request["time"], request["count"])
        if "jail" not in request and "filter" not in request:
            return {"seconds": float(MyTime.str2seconds(request.get("time", "")))}
        if "jail" in request:
            reader = JailReader(request["jail"], force_enable=True,
                                basedir=request["dir"], share_config=shared)
            reader.read()
            reader.getOptions()
            return collect(reader.convert(allow_no_files=True))
        reader = FilterReader(request["filter"], "jail", request.get("options") or {},
                              basedir=request["dir"], share_config=shared)
        if not reader.read():
            return {"error": "not found"}
        reader.getOptions({})
        return collect(reader.convert())
    except BaseException as e:
        return {"error": repr(e)}


shares = {}
for line in sys.stdin:
    request = json.loads(line)
    shared = shares.setdefault(request.get("dir"), {})
    print(json.dumps(answer(request, shared)), flush=True)
