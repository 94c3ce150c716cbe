/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * A program for `xdpban pipeline add`: it lets each source open only so many
 * TCP connections a second, and drops the SYNs beyond that.
 *
 *	clang -O2 -g -target bpf -c synlimit.bpf.c -o synlimit.o
 *
 * It runs on what xdpban would pass, and goes on to the next program of the
 * pipeline. IPv4 without VLAN tags, to stay an example.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual MIT/GPL";

/* SYNs a second, and how many may come at once. */
volatile const __u64 rate = 10;
volatile const __u64 burst = 20;
/* Set by xdpban: where the pipeline goes on. */
volatile const __u32 next_slot = 1;

/* xdpban puts its own map in this one's place. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u32);
} pipeline SEC(".maps");

/* A bucket of tokens, in billionths of one: a source that has none left has
 * sent more than its rate. */
struct bucket {
	__u64 time;
	__u64 tokens;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __be32);
	__type(value, struct bucket);
} sources SEC(".maps");

#define TOKEN 1000000000ULL

static __always_inline int over_limit(__be32 src)
{
	__u64 now = bpf_ktime_get_ns();
	struct bucket *b = bpf_map_lookup_elem(&sources, &src);
	struct bucket fresh = {.time = now, .tokens = burst * TOKEN - TOKEN};
	__u64 gained;

	if (!b) {
		bpf_map_update_elem(&sources, &src, &fresh, BPF_ANY);
		return 0;
	}
	gained = (now - b->time) * rate;
	b->time = now;
	b->tokens = b->tokens + gained > burst * TOKEN ? burst * TOKEN : b->tokens + gained;
	if (b->tokens < TOKEN)
		return 1;
	b->tokens -= TOKEN;
	return 0;
}

SEC("xdp.frags")
int synlimit(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		goto next;
	if (ip->protocol != IPPROTO_TCP || ip->frag_off & bpf_htons(0x1fff))
		goto next;
	tcp = (void *)ip + ip->ihl * 4;
	if ((void *)(tcp + 1) > end)
		goto next;
	if (tcp->syn && !tcp->ack && over_limit(ip->saddr))
		return XDP_DROP;
next:
	bpf_tail_call(ctx, &pipeline, next_slot);
	return XDP_PASS;
}
