/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the XDP program and the Go package have to agree on. bpf2go turns
 * these into Go types; pinned maps are compared with them field by field
 * when they are opened, so a change here needs a new schema version.
 */
#pragma once

/* Ends are CLOCK_MONOTONIC nanoseconds. The low bits are not part of the
 * time (a microsecond of it), they are the ban's scope. What never ends is
 * said to: an end of 0 has passed, so a slot that nobody has written yet bans
 * nobody. */
#define SCOPE_BITS 10
#define SCOPE_MASK ((1ULL << SCOPE_BITS) - 1)
#define NEVER (~SCOPE_MASK)

/* Sizes of the fixed tables. */
#define MAX_JAIL_NAME 64
#define MAX_IFACES 64
#define MAX_VLAN_TAGS 4

/* One banned source, on one CPU. The kernel keeps one of these for every
 * possible CPU, so that each counts in memory of its own: what the packet path
 * doesn't read is in struct origin. */
struct ban {
	__u64 expires;
	__u64 packets;
	__u64 bytes;
};

/* Who banned a source and when, and what has been counted in maps that are
 * replaced since. Never read by the packet path. */
struct origin {
	__s64 since; /* Unix time, ns */
	__s64 until; /* Unix time, ns; 0: forever */
	__u64 packets;
	__u64 bytes;
	__u32 jail; /* key of jails */
	__u32 pad;
};

struct jail_name {
	char name[MAX_JAIL_NAME];
};

/* Keys of net, origin and allow: the layout an LPM trie asks for. */
struct prefix4 {
	__u32 len;
	__be32 addr;
};

struct prefix6 {
	__u32 len;
	__be32 addr[4];
};

struct addr6 {
	__be32 w[4];
};

struct allowed {
	char origin[16];
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* How a packet left the program: counted by interface in verdicts, at
 * slot * OUTCOMES + outcome. */
enum outcome {
	PASS,          /* nothing against it */
	PASS_UNPARSED, /* cut short, or more VLAN tags than we walk */
	PASS_ALLOWED,  /* banned, but on the allowlist */
	DROP_BAN,      /* by ban4 or ban6 */
	DROP_NET,      /* by net4 or net6 */
	DROP_PORT,     /* by ports */
	DROP_POLICY,   /* policy deny: not on the allowlist */
	OUTCOMES = 16,
};

/* Interface names by slot; slot 0 is shared by those that found no room. */
struct iface {
	char name[16];
};

/* One element of meta: what any process needs to know of the pinned set. */
struct meta {
	__u64 epoch;
	__u64 generation; /* counts the turns of writers */
	__u64 maps;       /* counts the replacements of maps */
	__u32 max_bans;   /* how far ban4 and ban6 may grow, */
	__u32 max_nets;   /* and net4 and net6 */
	__u32 lens4;      /* bit n: net4 may hold prefixes of length n */
	__u32 features;   /* of enum feature */
	__u64 lens6[2];   /* likewise for net6 */
	__u64 deny_until; /* when policy deny falls back, monotonic ns; 0: never */
	__u32 sampling;   /* monitor: one drop in so many */
	__u32 replacing;  /* maps are being replaced, or whoever did that died */
};

enum feature {
	FEATURE_ALLOW4 = 1,
	FEATURE_ALLOW6 = 2,
	FEATURE_PORTS = 4,     /* ports blocked for everybody */
	FEATURE_SCOPES = 8,    /* bans that hold for some ports */
	FEATURE_DENY = 16,     /* only the allowlist passes */
	FEATURE_PIPELINE = 32, /* programs behind ours */
	FEATURE_MONITOR = 64,  /* samples of what is dropped */
};

/* A destination port, blocked for everybody (scope 0) or for the sources
 * whose bans have that scope. */
struct port {
	__be16 port;
	__u8 proto; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad;
	__u32 scope;
};

/* The start of a dropped packet. */
#define SAMPLE_BYTES 128

struct sample {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	__u32 ifindex;
	__u32 length; /* of the whole packet */
	__u32 taken;  /* bytes of data that are filled */
	__u32 outcome;
	__u8 data[SAMPLE_BYTES];
};

/* Programs that may follow ours. */
#define MAX_PIPELINE 8

/* What write_bans is asked to do with one entry. */
struct request {
	struct prefix6 key; /* an IPv4 address is where an IPv6 one begins */
	__u32 found;        /* set by write_bans: there was such an entry */
	struct ban ban;     /* summed over the CPUs */
	struct origin origin;
};

#define MAX_REQUESTS 512

struct requests {
	struct request list[MAX_REQUESTS];
};

enum operation {
	BAN,    /* make the entry, or change all but its counts */
	REMOVE, /* and tell what it was */
	ORIGIN, /* tell the origin */
};

struct write_args {
	__u32 operation; /* of enum operation */
	__u32 count;     /* how many of the requests */
};
