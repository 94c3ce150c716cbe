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
/* bpf_xdp_get_buff_len and multi-buffer packets came with Linux 5.18. */
volatile const bool multi_buffer;
/* What is in use: bits of enum feature. */
volatile const enum feature features;
/* Only here so that the enum gets into the BTF, from which Go's comes. */
volatile const enum outcome outcome_type;
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
 * Bans are preallocated: the kernel makes per-CPU values one by one ten times
 * more slowly, and now and then has none in the middle of a flood. The maps
 * start small and are replaced by larger ones as they fill.
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

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct prefix4);
	__type(value, struct origin);
} origin4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct prefix6);
	__type(value, struct origin);
} origin6 SEC(".maps");

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

static __always_inline __u64 now(void)
{
	return coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

/* standing says whether a ban is there and hasn't ended. */
static __always_inline bool standing(const struct ban *b)
{
	return b && (b->expires <= SCOPE_MASK || b->expires > now());
}

static __always_inline void charge(struct ban *b, __u64 bytes)
{
	b->packets++;
	b->bytes += bytes;
}

static __always_inline enum outcome judge4(__be32 src, __u64 bytes)
{
	enum outcome o = DROP_BAN;
	struct ban *b = bpf_map_lookup_elem(&ban4, &src);

	if (!standing(b)) {
		struct prefix4 key;

		o = DROP_NET;
		b = NULL;
		/* An ended /24 must not hide a /16 that stands: go on. */
		for (__u32 i = 0; i < probes4_len && i < MAX_PROBES4; i++) {
			key.len = probes4[i].len;
			key.addr = src & probes4[i].mask;
			b = bpf_map_lookup_elem(&net4, &key);
			if (standing(b))
				break;
			b = NULL;
		}
		if (!b)
			return PASS;
	}

	if (features & FEATURE_ALLOW4) {
		struct prefix4 key = {.len = 32, .addr = src};

		if (bpf_map_lookup_elem(&allow4, &key))
			return PASS_ALLOWED;
	}
	charge(b, bytes);
	return o;
}

static __always_inline enum outcome judge6(const struct addr6 *src, __u64 bytes)
{
	enum outcome o = DROP_BAN;
	struct ban *b = bpf_map_lookup_elem(&ban6, src);

	if (!standing(b)) {
		struct prefix6 key;

		o = DROP_NET;
		b = NULL;
		for (__u32 i = 0; i < probes6_len && i < MAX_PROBES6; i++) {
			key.len = probes6[i].len;
			key.addr[0] = src->w[0] & probes6[i].mask[0];
			key.addr[1] = src->w[1] & probes6[i].mask[1];
			key.addr[2] = src->w[2] & probes6[i].mask[2];
			key.addr[3] = src->w[3] & probes6[i].mask[3];
			b = bpf_map_lookup_elem(&net6, &key);
			if (standing(b))
				break;
			b = NULL;
		}
		if (!b)
			return PASS;
	}

	if (features & FEATURE_ALLOW6) {
		struct prefix6 key = {
		    .len = 128,
		    .addr = {src->w[0], src->w[1], src->w[2], src->w[3]},
		};

		if (bpf_map_lookup_elem(&allow6, &key))
			return PASS_ALLOWED;
	}
	charge(b, bytes);
	return o;
}

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

static __always_inline enum outcome judge(struct xdp_md *ctx, __u64 bytes)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	void *l3 = eth + 1;
	__be16 proto;

	if (l3 > end)
		return PASS_UNPARSED;
	proto = eth->h_proto;

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

	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end)
			return PASS_UNPARSED;
		return judge4(ip->saddr, bytes);
	}
	if (proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = l3;
		struct addr6 src;

		if ((void *)(ip + 1) > end)
			return PASS_UNPARSED;
		__builtin_memcpy(&src, &ip->saddr, sizeof(src));
		return judge6(&src, bytes);
	}
	if (proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD))
		return PASS_UNPARSED;
	return PASS;
}

SEC("xdp.frags")
int xdpban(struct xdp_md *ctx)
{
	__u64 bytes = multi_buffer ? bpf_xdp_get_buff_len(ctx) : (__u64)(ctx->data_end - ctx->data);
	enum outcome o = judge(ctx, bytes);
	__u32 key = slot * OUTCOMES + o;
	struct counter *c = bpf_map_lookup_elem(&verdicts, &key);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
	return o >= DROP_BAN ? XDP_DROP : XDP_PASS;
}
