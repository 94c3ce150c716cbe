package regex

import (
	"slices"
	"strings"
	"unicode/utf8"
)

type opcode uint8

const (
	opByte    opcode = iota // b
	opStr                   // s
	opFold                  // s without regard to case
	opSet                   // one character of set
	opLoop                  // greedy run of set, min to max characters; next is tab or s
	opRun                   // as opLoop, never given back
	opLazy                  // lazy run of set
	opSplit                 // try x, then y; tab says which of them (bits 0 and 1) can start with a byte
	opAlt                   // try the targets of lists[x+tab[byte]] in order
	opJump                  // to x
	opOpen                  // group x starts
	opClose                 // group x ends
	opMark                  // remember the position in slot x
	opCheck                 // go to y if the position is still that of slot x
	opLook                  // the body behind this, up to opEnd; then y
	opLookStr               // s ahead or behind
	opLookSet               // one character of set ahead or behind
	opAtomic                // the body behind this, up to opEnd; then y
	opEnd                   // end of a body
	opBackref               // what group x caught
	opCond                  // next if group x is set, else y
	opBeginText
	opBeginLine
	opEndText
	opEndTextOrNL
	opEndLine
	opWord
	opNotWord
	opMatch
	// In programs for the memoised mode only:
	opSplitMemo
	opAltMemo
	opRunMemo // as opRun with no bounds
)

type inst struct {
	op       opcode
	b        byte
	eot      uint8 // as an entry of tab, for the end of the text
	keep     bool  // opOpen, opClose: the old value must be restored on the way back
	neg      bool
	behind   bool
	ascii    bool
	fold     bool
	frees    bool // opLook: successes may be remembered, since the body catches nothing
	x, y     int32
	min, max int32
	memo     int32
	set      *set
	tab      *[256]uint8
	s        string
}

type program struct {
	insts []inst
	lists [][]int32
	slots int
	loops []int32 // slots of loops whose rounds may be empty and catch something
	memos int     // instructions with a column in the memo table
	looks bool    // has lookarounds whose success may be remembered
}

// maxProgram bounds what repeats of groups may expand to.
const maxProgram = 1 << 15

// first is what can come first: bytes, or the end of the text.
type first struct {
	bits [4]uint64
	eot  bool
}

func (f *first) add(b byte)      { f.bits[b>>6] |= 1 << (b & 63) }
func (f *first) has(b byte) bool { return f.bits[b>>6]>>(b&63)&1 != 0 }

func (f first) or(o first) first {
	for i := range f.bits {
		f.bits[i] |= o.bits[i]
	}
	f.eot = f.eot || o.eot
	return f
}

// meets says whether one byte can start both.
func (f *first) meets(o *first) bool {
	for i := range f.bits {
		if f.bits[i]&o.bits[i] != 0 {
			return true
		}
	}
	return false
}

func anything() first {
	const all = ^uint64(0)
	return first{[4]uint64{all, all, all, all}, true}
}

// follow is what comes after a piece of the pattern: the bytes it can start
// with, and the literal it must start with, if any.
type follow struct {
	first first
	lit   string
}

type compiler struct {
	p      *program
	memo   bool
	nest   int // above 0 within what may be passed by or run through twice
	refs   map[int]bool
	tables map[[256]uint8]*[256]uint8
	sets   map[*set]first
}

type tooLarge struct{}

// generate compiles n; ok is false if it would become too large.
func generate(n *node, memo bool, refs map[int]bool) (p *program, ok bool) {
	c := &compiler{p: &program{}, memo: memo, refs: refs, tables: map[[256]uint8]*[256]uint8{}, sets: map[*set]first{}}
	defer func() {
		if r := recover(); r != nil {
			if _, large := r.(tooLarge); !large {
				panic(r)
			}
			p, ok = nil, false
		}
	}()
	c.emit(n, follow{first: anything()})
	c.add(inst{op: opMatch})
	c.p.insts = slices.Clip(c.p.insts)
	return c.p, true
}

func (c *compiler) add(in inst) int {
	if len(c.p.insts) >= maxProgram {
		panic(tooLarge{})
	}
	c.p.insts = append(c.p.insts, in)
	return len(c.p.insts) - 1
}

func (c *compiler) pc() int32 { return int32(len(c.p.insts)) }

// before is what comes when n is followed by f.
func (c *compiler) before(n *node, f follow) follow {
	switch n.kind {
	case nEmpty, nLook:
		return f
	case nLit:
		var g follow
		g.first.add(n.s[0])
		g.lit = n.s
		return g
	case nFold:
		var g follow
		g.first.add(n.s[0])
		if isLetter(n.s[0]) {
			g.first.add(n.s[0] - 32)
			if !n.ascii && strings.IndexByte("iks", n.s[0]) >= 0 {
				for b := utf8.RuneSelf; b < 256; b++ {
					g.first.add(byte(b))
				}
			}
		}
		return g
	case nSet:
		return follow{first: c.setFirst(n.set)}
	case nCat:
		for _, s := range slices.Backward(n.subs) {
			f = c.before(s, f)
		}
		return f
	case nAlt, nCond:
		var g follow
		for _, s := range n.subs {
			g.first = g.first.or(c.before(s, f).first)
		}
		return g
	case nRepeat:
		g := c.before(n.subs[0], follow{first: f.first})
		if n.min == 0 {
			g = follow{first: g.first.or(f.first)}
		}
		return g
	case nGroup, nAtomic:
		return c.before(n.subs[0], f)
	case nBackref:
		return follow{first: anything()}
	}
	// nAssert
	switch n.assert {
	case endText:
		return follow{first: first{eot: true}}
	case endTextOrNL, endLine:
		g := follow{first: first{eot: true}}
		g.first.add('\n')
		return g
	}
	return f
}

func (c *compiler) setFirst(s *set) first {
	f, ok := c.sets[s]
	if !ok {
		for b := range 256 {
			if s.tab[b] != outside {
				f.add(byte(b))
			}
		}
		c.sets[s] = f
	}
	return f
}

// table makes one table of several sets of first bytes, a bit for each.
func (c *compiler) table(fs ...first) (*[256]uint8, uint8) {
	var t [256]uint8
	var eot uint8
	for i := range fs {
		for b := range 256 {
			if fs[i].has(byte(b)) {
				t[b] |= 1 << i
			}
		}
		if fs[i].eot {
			eot |= 1 << i
		}
	}
	return c.intern(t), eot
}

func (c *compiler) intern(t [256]uint8) *[256]uint8 {
	if p := c.tables[t]; p != nil {
		return p
	}
	p := &t
	c.tables[t] = p
	return p
}

func (c *compiler) newMemo() int32 {
	c.p.memos++
	return int32(c.p.memos - 1)
}

// emit writes n; f is what follows it.
func (c *compiler) emit(n *node, f follow) {
	switch n.kind {
	case nEmpty:
	case nLit:
		if len(n.s) == 1 {
			c.add(inst{op: opByte, b: n.s[0]})
		} else {
			c.add(inst{op: opStr, s: n.s})
		}
	case nFold:
		c.add(inst{op: opFold, s: n.s, ascii: n.ascii})
	case nSet:
		c.add(inst{op: opSet, set: n.set})
	case nCat:
		fs := make([]follow, len(n.subs))
		for i, s := range slices.Backward(n.subs) {
			fs[i] = f
			f = c.before(s, f)
		}
		for i, s := range n.subs {
			c.emit(s, fs[i])
		}
	case nAlt:
		c.nest++
		c.choice(n, f)
		c.nest--
	case nRepeat:
		c.repeat(n, f)
	case nGroup:
		keep := c.nest > 0 || c.refs[n.n]
		c.add(inst{op: opOpen, x: int32(n.n), keep: keep})
		c.emit(n.subs[0], f)
		c.add(inst{op: opClose, x: int32(n.n), keep: keep})
	case nAtomic:
		c.atomic(n.subs[0])
	case nLook:
		c.look(n)
	case nBackref:
		c.add(inst{op: opBackref, x: int32(n.n), fold: n.fold, ascii: n.ascii})
	case nCond:
		c.nest++
		cond := c.add(inst{op: opCond, x: int32(n.n)})
		c.emit(n.subs[0], f)
		jump := c.add(inst{op: opJump})
		c.p.insts[cond].y = c.pc()
		c.emit(n.subs[1], f)
		c.p.insts[jump].x = c.pc()
		c.nest--
	case nAssert:
		in := inst{op: opBeginText + opcode(n.assert)}
		if n.assert == wordBoundary || n.assert == notBoundary {
			in.set = words()
			if n.ascii {
				in.set = asciiWords()
			}
		}
		c.add(in)
	}
}

func (c *compiler) choice(n *node, f follow) {
	fs := make([]first, len(n.subs))
	for i, s := range n.subs {
		fs[i] = c.before(s, f).first
	}
	if len(fs) == 2 {
		split := c.split(fs[0], fs[1])
		c.p.insts[split].x = c.pc()
		c.emit(n.subs[0], f)
		jump := c.add(inst{op: opJump})
		c.p.insts[split].y = c.pc()
		c.emit(n.subs[1], f)
		c.p.insts[jump].x = c.pc()
		return
	}
	// Which alternatives a byte can start, as lists that are few and shared.
	var lists [][]int32
	number := func(can func(first) bool) uint8 {
		l := []int32{}
		for i := range fs {
			if can(fs[i]) {
				l = append(l, int32(i))
			}
		}
		for k := range lists {
			if slices.Equal(lists[k], l) {
				return uint8(k)
			}
		}
		if len(lists) == 256 {
			panic(tooLarge{}) // 257 entries, all different: not in this world
		}
		lists = append(lists, l)
		return uint8(len(lists) - 1)
	}
	var t [256]uint8
	for b := range 256 {
		t[b] = number(func(f first) bool { return f.has(byte(b)) })
	}
	in := inst{op: opAlt, eot: number(func(f first) bool { return f.eot }), tab: c.intern(t), x: int32(len(c.p.lists))}
	if c.memo {
		in.op, in.memo = opAltMemo, c.newMemo()
	}
	c.p.lists = append(c.p.lists, lists...)
	c.add(in)
	starts := make([]int32, len(n.subs))
	jumps := make([]int, 0, len(n.subs))
	for i, s := range n.subs {
		starts[i] = c.pc()
		c.emit(s, f)
		if i < len(n.subs)-1 {
			jumps = append(jumps, c.add(inst{op: opJump}))
		}
	}
	for _, j := range jumps {
		c.p.insts[j].x = c.pc()
	}
	for _, l := range lists {
		for i := range l {
			l[i] = starts[l[i]]
		}
	}
}

// split adds a choice of two whose targets the caller fills in.
func (c *compiler) split(x, y first) int {
	in := inst{op: opSplit}
	in.tab, in.eot = c.table(x, y)
	if c.memo {
		in.op, in.memo = opSplitMemo, c.newMemo()
	}
	return c.add(in)
}

func (c *compiler) repeat(n *node, f follow) {
	body := n.subs[0]
	if n.mode == possessive {
		if r, ok := body.char(); ok {
			c.run(body, r, n, f)
			return
		}
		// In Python each round, too, gives nothing back.
		g := *n
		g.mode = greedy
		g.subs = []*node{{kind: nAtomic, subs: n.subs}}
		c.atomic(&g)
		return
	}
	if r, ok := body.char(); ok && !c.memo {
		c.run(body, r, n, f)
		return
	}
	nullable := nullable(body)
	if n.min == 1 && n.max == infinite && !nullable {
		// The loop is entered at its body.
		c.nest++
		c.loop(n, f, false)
		c.nest--
		return
	}
	if n.max > 1 {
		c.nest++ // a group is run through twice
		defer func() { c.nest-- }()
	}
	for i := range n.min {
		rest := &node{kind: nRepeat, subs: n.subs, min: n.min - i - 1, max: n.max, mode: n.mode}
		if n.max != infinite {
			rest.max -= i + 1
		}
		g := f
		if rest.max > 0 {
			g = c.before(rest, f)
		}
		c.emit(body, g)
	}
	c.nest++
	defer func() { c.nest-- }()
	if n.max == infinite {
		c.loop(n, f, true)
		return
	}
	// Each further round may be the last.
	var splits []int
	var checks []int
	again := f.first.or(c.before(body, f).first)
	for i := n.min; i < n.max; i++ {
		splits = append(splits, c.enter(n, c.before(body, follow{first: again}).first, f.first))
		slot := int32(0)
		check := nullable && i < n.max-1
		if check {
			slot = c.slot()
			c.add(inst{op: opMark, x: slot})
		}
		g := f
		if i < n.max-1 {
			g = follow{first: again}
		}
		c.emit(body, g)
		if check {
			checks = append(checks, c.add(inst{op: opCheck, x: slot}))
		}
	}
	for _, s := range splits {
		c.leave(n, s)
	}
	for _, k := range checks {
		c.p.insts[k].y = c.pc()
	}
}

func (c *compiler) slot() int32 {
	c.p.slots++
	return int32(c.p.slots - 1)
}

// enter adds the choice between a round, which comes next, and the end.
func (c *compiler) enter(n *node, body, end first) int {
	if n.mode == lazy {
		s := c.split(end, body)
		c.p.insts[s].y = c.pc()
		return s
	}
	s := c.split(body, end)
	c.p.insts[s].x = c.pc()
	return s
}

// leave makes the end of the choice s the place where the program is now.
func (c *compiler) leave(n *node, s int) {
	if n.mode == lazy {
		c.p.insts[s].x = c.pc()
	} else {
		c.p.insts[s].y = c.pc()
	}
}

// loop adds an unbounded loop; choose says that it may be left before its
// first round.
func (c *compiler) loop(n *node, f follow, choose bool) {
	body := n.subs[0]
	round := c.before(body, follow{first: f.first}).first
	again := round.or(f.first)
	nullable := nullable(body)
	head := -1
	if choose {
		head = c.enter(n, c.before(body, follow{first: again}).first, f.first)
	}
	start := c.pc()
	slot, check := int32(0), -1
	if nullable {
		slot = c.slot()
		if catches(body) {
			c.p.loops = append(c.p.loops, slot)
		}
		c.add(inst{op: opMark, x: slot})
	}
	c.emit(body, follow{first: again})
	if nullable {
		// As Python has it, an empty round is the last.
		check = c.add(inst{op: opCheck, x: slot})
	}
	var tail int
	if head >= 0 {
		tail = c.add(c.p.insts[head]) // the same choice, and the same column of the memo
	} else {
		tail = c.enter(n, c.before(body, follow{first: again}).first, f.first)
	}
	if n.mode == lazy {
		c.p.insts[tail].y = start
	} else {
		c.p.insts[tail].x = start
	}
	c.leave(n, tail)
	if head >= 0 {
		c.leave(n, head)
	}
	if check >= 0 {
		c.p.insts[check].y = c.pc()
	}
}

// run adds a repeat of one character.
func (c *compiler) run(body *node, r ranges, n *node, f follow) {
	s := body.set
	if s == nil {
		s = newSet(r)
	}
	in := inst{op: opLoop, set: s, min: int32(n.min), max: int32(n.max), s: f.lit}
	in.tab, in.eot = c.table(f.first)
	own := c.setFirst(s)
	switch {
	case n.mode == possessive && c.memo && n.max == infinite:
		for range n.min {
			c.add(inst{op: opSet, set: s})
		}
		in.op, in.memo = opRunMemo, c.newMemo()
	case n.mode == possessive, !own.meets(&f.first):
		// If what follows can't start with a character of the set, giving
		// one back, or stopping short, can't help.
		in.op = opRun
	case n.mode == lazy:
		in.op = opLazy
	}
	c.add(in)
}

func (c *compiler) atomic(body *node) {
	c.nest++
	a := c.add(inst{op: opAtomic})
	// What follows must not guide the body: its first match counts.
	c.emit(body, follow{first: anything()})
	c.add(inst{op: opEnd})
	c.p.insts[a].y = c.pc()
	c.nest--
}

func (c *compiler) look(n *node) {
	body := n.subs[0]
	in := inst{op: opLook, neg: n.neg, behind: n.behind, max: int32(n.back)}
	switch {
	case body.kind == nLit:
		in.op, in.s = opLookStr, body.s
		c.add(in)
		return
	case body.kind == nSet:
		in.op, in.set = opLookSet, body.set
		c.add(in)
		return
	}
	in.frees = !catches(body)
	c.p.looks = c.p.looks || in.frees
	in.tab, in.eot = c.table(c.before(body, follow{first: anything()}).first)
	c.nest++
	l := c.add(in)
	c.emit(body, follow{first: anything()})
	c.add(inst{op: opEnd})
	c.p.insts[l].y = c.pc()
	c.nest--
}

// nullable says whether n can match nothing.
func nullable(n *node) bool {
	switch n.kind {
	case nLit, nFold, nSet:
		return false
	case nCat:
		return !slices.ContainsFunc(n.subs, func(s *node) bool { return !nullable(s) })
	case nAlt, nCond:
		return slices.ContainsFunc(n.subs, nullable)
	case nRepeat:
		return n.min == 0 || nullable(n.subs[0])
	case nGroup, nAtomic:
		return nullable(n.subs[0])
	}
	return true
}

// catches says whether there is a group in n.
func catches(n *node) bool {
	return n.kind == nGroup || slices.ContainsFunc(n.subs, catches)
}
