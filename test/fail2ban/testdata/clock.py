"""Runs logs through fail2ban's own filters and failure counting, with its
clock set to each line's time: what a server that had been there all along
would have banned.

Usage: clock.py CONFIG JAIL=LOG ...
Standard output: {"bans", "failures"} as JSON.
"""
import json
import logging
import sys

from fail2ban.client.jailreader import JailReader
from fail2ban.server.filter import Filter
from fail2ban.server.mytime import MyTime

logging.disable(logging.CRITICAL)


class Jail:
    """Takes the tickets that a filter gives out as bans."""

    def __init__(self, name, bantime):
        self.name, self.bantime, self.bans, self.until = name, bantime, [], {}

    def putFailTicket(self, ticket):
        who, at = str(ticket.getID()), ticket.getTime()
        if self.until.get(who, 0) > at:
            return  # "already banned"
        self.until[who] = at + self.bantime
        self.bans.append({"jail": self.name, "addr": who, "since": at})


def run(config, name, log):
    reader = JailReader(name, basedir=config, share_config={})
    reader.read()
    reader.getOptions()
    jail = Jail(name, 0)
    flt = Filter(jail)
    for command in reader.convert(allow_no_files=True):
        if command[0] not in ("set", "multi-set"):
            continue
        option, values = command[2], command[3:]
        if command[0] == "multi-set":
            values = values[0]
        for value in values:
            if option == "addfailregex":
                flt.addFailRegex(value)
            elif option == "addignoreregex":
                flt.addIgnoreRegex(value)
            elif option == "prefregex":
                flt.prefRegex = value
            elif option == "datepattern":
                flt.setDatePattern(value)
            elif option == "maxlines":
                flt.setMaxLines(value)
            elif option == "usedns":
                flt.setUseDns(value)
            elif option == "maxretry":
                flt.setMaxRetry(int(value))
            elif option == "findtime":
                flt.setFindTime(value)
            elif option == "bantime":
                jail.bantime = MyTime.str2seconds(value)
    flt.ignoreSelf = False
    add = flt.failManager.addFailure

    def note(ticket, *args, **kwargs):
        failures.append({"jail": name, "addr": str(ticket.getID()), "since": ticket.getTime()})
        return add(ticket, *args, **kwargs)

    flt.failManager.addFailure = note
    with open(log) as lines:
        for line in lines:
            line = line.rstrip("\n")
            found = flt.dateDetector.getTime(line)
            if found:
                MyTime.setTime(found[0])
            flt.processLineAndAdd(line)
    return jail.bans


bans, failures = [], []
for arg in sys.argv[2:]:
    name, log = arg.split("=", 1)
    MyTime.setTime(None)
    bans += run(sys.argv[1], name, log)
print(json.dumps({"bans": bans, "failures": failures}))
