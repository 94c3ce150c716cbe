//go:build ignore

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * xdpban drops packets by their source address.
 *
 * The source is judged before the protocol is looked at, so neither IP
 * options, extension headers nor fragments can slip past a ban. What can't be
 * parsed passes and is counted: a parser that fails closed is a way to take
 * the host off the net.
 *
 * The constants below are set when the program is loaded. The verifier knows
 * their values and removes what they switch off, so a feature that isn't in
 * use isn't in the program.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

char _license[] SEC("license") = "Dual MIT/GPL";

/* bpf_ktime_get_coarse_ns came with Linux 5.11; it costs a fifth. */
volatile const bool coarse_clock;
/* Multi-buffer packets came with Linux 5.18, and bpf_xdp_get_buff_len and
 * bpf_xdp_load_bytes with them. */
volatile const bool multi_buffer;
/* What is in use: bits of enum feature. */
volatile const enum feature features;
/* Policy deny's end, monotonic ns, or 0; and how many drops make a sample. */
volatile const __u64 deny_until;
volatile const __u32 sampling;
/* The sieve has 2^(64 - sieve_shift) bits. */
volatile const __u32 sieve_shift = 64 - 6;
/* Where write_bans writes: ban4, ban6, net4 or net6; and how many CPUs there
 * may be. */
volatile const __u32 table;
volatile const __u32 cpus = 1;
/* Only here so that these get into the BTF, from which Go's types come. */
volatile const enum outcome outcome_type;
volatile const enum operation operation_type;
const struct sample *volatile const sample_type;
/* The program is loaded once per interface: this is where it counts. */
volatile const __u32 slot;

struct probe4 {
	__u32 len;
	__be32 mask;
};

struct probe6 {
	__u32 len;
	__be32 mask[4];
};

/* The prefix lengths in use, longest first. */
#define MAX_PROBES4 31
#define MAX_PROBES6 127
volatile const __u32 probes4_len;
volatile const __u32 probes6_len;
volatile const struct probe4 probes4[MAX_PROBES4];
volatile const struct probe6 probes6[MAX_PROBES6];

/*
 * The sizes of the maps of bans and of the allowlist are set at load time.
 *
 * Bans are preallocated: without, an insert takes several times as long, and
 * now and then finds no memory in the middle of a flood. The maps start small
 * and are replaced by larger ones as they fill. Each CPU counts in a value of
 * its own: in a flood none waits for another's cache line.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1);
	__type(key, __be32);
	__type(value, struct ban);
} ban4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1);
	__type(key, struct addr6);
	__type(value, struct ban);
} ban6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1);
	__type(key, struct prefix4);
	__type(value, struct ban);
} net4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1);
	__type(key, struct prefix6);
	__type(value, struct ban);
} net6 SEC(".maps");

/* Of addresses and subnets alike. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct prefix4);
	__type(value, struct origin);
} origin4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct prefix6);
	__type(value, struct origin);
} origin6 SEC(".maps");

/*
 * A bit for each entry of those four: where it isn't set there is no entry,
 * and the packet needn't look. The bits fit into a CPU's cache, the entries
 * don't. Bits are set before their entry is made, and cleared, some time after
 * the last entry they stood for is gone, by writing a word that has the bits
 * of all that stands.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sieve SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct prefix4);
	__type(value, struct allowed);
} allow4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct prefix6);
	__type(value, struct allowed);
} allow6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_IFACES *OUTCOMES);
	__type(key, __u32);
	__type(value, struct counter);
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct jail_name);
} jails SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_IFACES);
	__type(key, __u32);
	__type(value, struct iface);
} ifaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct meta);
} meta SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct port);
	__type(value, struct counter);
} ports SEC(".maps");

/* An element may end the chain, or go on with the next one by a tail call of
 * its own. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, MAX_PIPELINE);
	__type(key, __u32);
	__type(value, __u32);
} pipeline SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

static __always_inline __u64 now(void)
{
	return coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

/* What is judged: the IP header, its source, and where the packet ends. */
struct packet {
	struct xdp_md *ctx;
	__u32 in_use; /* of features, read once */
	void *l3;
	void *end;
	__u64 bytes;
	bool v6;
	struct addr6 src; /* w[0] alone for IPv4 */
};

struct l4 {
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 type; /* of an ICMP message */
};

struct extension {
	__u8 next;
	__u8 len;
	__be16 fragment;
};

#define MAX_EXTENSIONS 8

/*
 * find_l4 finds the header behind IP options and extension headers. A later
 * fragment has none: it passes what is judged by port. Without its first
 * fragment, which doesn't, nothing is put together from it.
 */
static __always_inline bool find_l4(const struct packet *p, struct l4 *out)
{
	__be16 *start;
	__u32 off;
	__u8 proto;

	if (!p->v6) {
		struct iphdr *ip = p->l3;

		if ((void *)(ip + 1) > p->end || ip->frag_off & bpf_htons(0x1fff))
			return false;
		proto = ip->protocol;
		off = ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = p->l3;
		int i;

		if ((void *)(ip + 1) > p->end)
			return false;
		proto = ip->nexthdr;
		off = sizeof(*ip);
		for (i = 0; i < MAX_EXTENSIONS; i++) {
			struct extension *e = p->l3 + off;

			if (proto != IPPROTO_HOPOPTS && proto != IPPROTO_ROUTING &&
			    proto != IPPROTO_DSTOPTS && proto != IPPROTO_FRAGMENT &&
			    proto != IPPROTO_AH)
				break;
			if ((void *)(e + 1) > p->end)
				return false;
			if (proto == IPPROTO_FRAGMENT) {
				if (e->fragment & bpf_htons(0xfff8))
					return false;
				off += 8;
			} else if (proto == IPPROTO_AH) {
				off += (e->len + 2) * 4;
			} else {
				off += (e->len + 1) * 8;
			}
			proto = e->next;
		}
		if (i == MAX_EXTENSIONS)
			return false;
	}

	start = p->l3 + off;
	if ((void *)(start + 2) > p->end)
		return false;
	out->proto = proto;
	out->type = *(__u8 *)start;
	out->sport = start[0];
	out->dport = start[1];
	return true;
}

/* blocked looks a packet's destination port up, for everybody or a scope. */
static __always_inline struct counter *blocked(const struct packet *p, __u32 scope)
{
	struct l4 l4;

	if (!find_l4(p, &l4))
		return NULL;

	struct port key = {.port = l4.dport, .proto = l4.proto, .scope = scope};

	return bpf_map_lookup_elem(&ports, &key);
}

/* standing says whether a ban is there, hasn't ended, and is meant for this
 * packet. */
static __always_inline bool standing(const struct ban *b, const struct packet *p)
{
	if (!b || (b->expires < NEVER && b->expires <= now()))
		return false;
	if (p->in_use & FEATURE_SCOPES && b->expires & SCOPE_MASK)
		return blocked(p, b->expires & SCOPE_MASK);
	return true;
}

/* mix and spread are what sieve.go does, too. Every bit of an address counts:
 * neighbours are banned together, and must not cover other neighbours. */
#define SPREAD 0x9e3779b97f4a7c15ULL

static __always_inline __u64 mix(__u64 h, __u64 word)
{
	h = (h ^ word) * SPREAD;
	return h ^ h >> 32;
}

static __always_inline bool may_stand(__u64 h)
{
	__u64 bit = h * SPREAD >> sieve_shift;
	__u32 word = bit / 64;
	__u64 *w = bpf_map_lookup_elem(&sieve, &word);

	return !w || *w >> bit % 64 & 1;
}

static __always_inline struct ban *find_ban4(const struct packet *p, enum outcome *o)
{
	__be32 src = p->src.w[0];
	struct prefix4 key;
	struct ban *b;

	if (may_stand(mix(32, src))) {
		*o = DROP_BAN;
		b = bpf_map_lookup_elem(&ban4, &src);
		if (standing(b, p))
			return b;
	}
	*o = DROP_NET;
	/* An ended /24 must not hide a /16 that stands: go on. */
	for (__u32 i = 0; i < probes4_len && i < MAX_PROBES4; i++) {
		key.len = probes4[i].len;
		key.addr = src & probes4[i].mask;
		if (!may_stand(mix(key.len, key.addr)))
			continue;
		b = bpf_map_lookup_elem(&net4, &key);
		if (standing(b, p))
			return b;
	}
	return NULL;
}

static __always_inline __u64 mix6(__u32 len, const __be32 *w)
{
	return mix(mix(len, (__u64)w[0] << 32 | w[1]), (__u64)w[2] << 32 | w[3]);
}

static __always_inline struct ban *find_ban6(const struct packet *p, enum outcome *o)
{
	struct prefix6 key;
	struct ban *b;

	if (may_stand(mix6(128, p->src.w))) {
		*o = DROP_BAN;
		b = bpf_map_lookup_elem(&ban6, &p->src);
		if (standing(b, p))
			return b;
	}
	*o = DROP_NET;
	for (__u32 i = 0; i < probes6_len && i < MAX_PROBES6; i++) {
		key.len = probes6[i].len;
		key.addr[0] = p->src.w[0] & probes6[i].mask[0];
		key.addr[1] = p->src.w[1] & probes6[i].mask[1];
		key.addr[2] = p->src.w[2] & probes6[i].mask[2];
		key.addr[3] = p->src.w[3] & probes6[i].mask[3];
		if (!may_stand(mix6(key.len, key.addr)))
			continue;
		b = bpf_map_lookup_elem(&net6, &key);
		if (standing(b, p))
			return b;
	}
	return NULL;
}

static __always_inline bool allowed(const struct packet *p)
{
	if (!p->v6) {
		if (!(p->in_use & FEATURE_ALLOW4))
			return false;

		struct prefix4 key = {.len = 32, .addr = p->src.w[0]};

		return bpf_map_lookup_elem(&allow4, &key);
	}
	if (!(p->in_use & FEATURE_ALLOW6))
		return false;

	struct prefix6 key = {
	    .len = 128,
	    .addr = {p->src.w[0], p->src.w[1], p->src.w[2], p->src.w[3]},
	};

	return bpf_map_lookup_elem(&allow6, &key);
}

/* own says whether a packet belongs to a connection that the host has: an
 * answer, in most cases. */
static __always_inline bool own(const struct packet *p, const struct l4 *l4)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size;
	bool yes;

	if (!p->v6) {
		struct iphdr *ip = p->l3;

		if ((void *)(ip + 1) > p->end)
			return false;
		tuple.ipv4.saddr = ip->saddr;
		tuple.ipv4.daddr = ip->daddr;
		tuple.ipv4.sport = l4->sport;
		tuple.ipv4.dport = l4->dport;
		size = sizeof(tuple.ipv4);
	} else {
		struct ipv6hdr *ip = p->l3;

		if ((void *)(ip + 1) > p->end)
			return false;
		__builtin_memcpy(tuple.ipv6.saddr, &ip->saddr, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &ip->daddr, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = l4->sport;
		tuple.ipv6.dport = l4->dport;
		size = sizeof(tuple.ipv6);
	}
	if (l4->proto == IPPROTO_TCP) {
		sk = bpf_sk_lookup_tcp(p->ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return false;
		yes = sk->state != BPF_TCP_LISTEN;
	} else {
		sk = bpf_sk_lookup_udp(p->ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return false;
		yes = sk->dst_port == l4->sport; /* connected, that is */
	}
	bpf_sk_release(sk);
	return yes;
}

/*
 * vital is what a host needs to live under policy deny, besides everything
 * that isn't IP (ARP among it): neighbour discovery, multicast listener
 * queries, path MTU messages, DHCP answers, and what belongs to a connection
 * that it has.
 */
static __always_inline bool vital(const struct packet *p)
{
	struct l4 l4;

	if (!find_l4(p, &l4))
		return false;
	if (!p->v6 && l4.proto == IPPROTO_ICMP)
		return l4.type == 3;
	if (p->v6 && l4.proto == IPPROTO_ICMPV6)
		return l4.type == 2 || l4.type == 130 || (l4.type >= 133 && l4.type <= 137);
	if (l4.proto == IPPROTO_UDP) {
		if (!p->v6 && l4.sport == bpf_htons(67) && l4.dport == bpf_htons(68))
			return true;
		if (p->v6 && l4.sport == bpf_htons(547) && l4.dport == bpf_htons(546))
			return true;
		return own(p, &l4);
	}
	return l4.proto == IPPROTO_TCP && own(p, &l4);
}

/* judge_source takes what is cheap first: a packet that nothing is held
 * against pays only for what is in use. */
static __always_inline enum outcome judge_source(const struct packet *p)
{
	enum outcome o;
	struct ban *b = p->v6 ? find_ban6(p, &o) : find_ban4(p, &o);

	if (b) {
		if (allowed(p))
			return PASS_ALLOWED;
		b->packets++;
		b->bytes += p->bytes;
		return o;
	}
	/* Policy deny can be tried out: then it falls back by itself, in case
	 * whoever turned it on has locked himself out. */
	if (p->in_use & FEATURE_DENY && (!deny_until || now() < deny_until)) {
		if (allowed(p))
			return PASS_ALLOWED;
		if (!vital(p))
			return DROP_POLICY;
	}
	if (p->in_use & FEATURE_PORTS) {
		struct counter *c = blocked(p, 0);

		if (c) {
			if (allowed(p))
				return PASS_ALLOWED;
			c->packets++;
			c->bytes += p->bytes;
			return DROP_PORT;
		}
	}
	return PASS;
}

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

static __always_inline enum outcome judge(struct xdp_md *ctx, __u64 bytes, __u32 in_use)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	void *l3 = data + sizeof(struct ethhdr);
	__be16 proto;

	if (l3 > end)
		return PASS_UNPARSED;
	/* Not by the struct's field: it is packed, and is read byte by byte. */
	proto = *(__be16 *)(data + offsetof(struct ethhdr, h_proto));

#pragma unroll
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlan_tag *tag = l3;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		l3 = tag + 1;
		if (l3 > end)
			return PASS_UNPARSED;
		proto = tag->proto;
	}

	struct packet p;

	p.ctx = ctx;
	p.in_use = in_use;
	p.l3 = l3;
	p.end = end;
	p.bytes = bytes;

	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end)
			return PASS_UNPARSED;
		p.v6 = false;
		p.src.w[0] = ip->saddr;
		return judge_source(&p);
	}
	if (proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > end)
			return PASS_UNPARSED;
		p.v6 = true;
		__builtin_memcpy(&p.src, &ip->saddr, sizeof(p.src));
		return judge_source(&p);
	}
	if (proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD))
		return PASS_UNPARSED;
	return PASS;
}

/* take_sample hands the start of a dropped packet to whoever watches. */
static __always_inline void take_sample(struct xdp_md *ctx, enum outcome o, __u64 bytes)
{
	struct sample *s;
	__u64 taken = bytes < SAMPLE_BYTES ? bytes : SAMPLE_BYTES;
	long err;

	if (sampling > 1 && bpf_get_prandom_u32() % sampling)
		return;
	s = bpf_ringbuf_reserve(&events, sizeof(*s), 0);
	if (!s)
		return;
	s->time = bpf_ktime_get_ns();
	s->ifindex = ctx->ingress_ifindex;
	s->length = bytes;
	s->outcome = o;
	/* The verifier has to see the bounds, also that of Linux 6.1, which
	 * doesn't take them from a comparison here. */
	asm volatile("" : "+r"(taken));
	taken = ((taken - 1) & (SAMPLE_BYTES - 1)) + 1;
	if (multi_buffer)
		err = bpf_xdp_load_bytes(ctx, 0, s->data, taken);
	else
		err = bpf_probe_read_kernel(s->data, taken, (void *)(long)ctx->data);
	s->taken = err ? 0 : taken;
	bpf_ringbuf_submit(s, 0);
}

SEC("xdp.frags")
int xdpban(struct xdp_md *ctx)
{
	__u64 bytes = multi_buffer ? bpf_xdp_get_buff_len(ctx) : (__u64)(ctx->data_end - ctx->data);
	__u32 in_use = features;
	enum outcome o = judge(ctx, bytes, in_use);
	__u32 key = slot * OUTCOMES + o;
	struct counter *c = bpf_map_lookup_elem(&verdicts, &key);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
	if (o >= DROP_BAN) {
		if (in_use & FEATURE_MONITOR)
			take_sample(ctx, o, bytes);
		return XDP_DROP;
	}
	if (in_use & FEATURE_PIPELINE)
		bpf_tail_call(ctx, &pipeline, 0);
	return XDP_PASS;
}

/* What write_bans is to do: made with the program, not pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct requests);
} requests SEC(".maps");

#define MAX_CPUS 4096

/* write_ban writes one entry, and says whether it found room. It is a function
 * of its own for the verifier, which goes through it once and not for each
 * turn of the loop below. Of counts it writes none: they are their CPUs'. */
__attribute__((noinline)) int write_ban(__u32 index, __u32 operation)
{
	void *map = table == 0   ? (void *)&ban4
	            : table == 1 ? (void *)&ban6
	            : table == 2 ? (void *)&net4
	                         : (void *)&net6;
	void *origins = table % 2 ? (void *)&origin6 : (void *)&origin4;
	__u32 zero = 0, possible = cpus;
	struct requests *rs = bpf_map_lookup_elem(&requests, &zero);
	struct ban sum = {};
	struct origin *o = NULL;
	struct request *r;
	struct ban *b;
	void *key;

	if (!rs || index >= MAX_REQUESTS)
		return 0;
	r = &rs->list[index];
	/* Single addresses are kept without their length. */
	key = table < 2 ? (void *)&r->key.addr : (void *)&r->key;
	if (operation == BAN) {
		/* The origin is there before the entry, and goes after it. */
		bool fresh = !bpf_map_update_elem(origins, &r->key, &r->origin, BPF_NOEXIST);

		if (!fresh) {
			o = bpf_map_lookup_elem(origins, &r->key);
			if (!o)
				return 0;
			o->since = r->origin.since;
			o->until = r->origin.until;
			o->jail = r->origin.jail;
		}
		/* On the other CPUs, a new one has an end of 0 until the loop. */
		if (bpf_map_update_elem(map, key, &r->ban, BPF_NOEXIST) &&
		    !bpf_map_lookup_elem(map, key)) {
			if (fresh)
				bpf_map_delete_elem(origins, &r->key);
			return 0;
		}
	} else {
		o = bpf_map_lookup_elem(origins, &r->key);
		if (operation == ORIGIN) {
			r->found = !!o;
			if (o)
				r->origin = *o;
			return 1;
		}
	}
	for (__u32 cpu = 0; cpu < MAX_CPUS && cpu < possible; cpu++) {
		b = bpf_map_lookup_percpu_elem(map, key, cpu);
		r->found = !!b;
		if (!b)
			break;
		if (operation == BAN)
			b->expires = r->ban.expires;
		sum.expires = b->expires;
		sum.packets += b->packets;
		sum.bytes += b->bytes;
	}
	if (operation == REMOVE) {
		r->ban = sum;
		bpf_map_delete_elem(map, key);
		if (o) {
			r->origin = *o;
			bpf_map_delete_elem(origins, &r->key);
		}
	}
	return 1;
}

/*
 * write_bans writes many entries of one table. It is run by a system call,
 * never by a packet: one system call an entry takes several times as long,
 * and between reading a value and writing it back from user space counts get
 * lost. It returns how many requests are done; if not all, the next one found
 * no room.
 */
SEC("syscall")
int write_bans(struct write_args *args)
{
	__u32 operation = args->operation;
	__u32 count = args->count;
	__u32 i;

	for (i = 0; i < MAX_REQUESTS && i < count; i++) {
		if (!write_ban(i, operation))
			break;
	}
	return i;
}
