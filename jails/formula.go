package jails

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Formula is a growth of the ban time in the arithmetic of fail2ban's
// bantime.formula: numbers, ban.Time, ban.Count, banFactor, + - * / // % **
// << >>, comparisons, and, or, not, x if c else y, min, max, abs, int, float,
// round, pow, and what math and random have for it. It means what Python makes
// of it; nothing else can be called or named, so nothing can be executed.
type Formula struct {
	text string
	root term
}

// FormulaVars are what a formula knows of the ban at hand.
type FormulaVars struct {
	Time   float64        // ban.Time: the jail's bantime in seconds
	Count  int            // ban.Count: past bans
	Factor float64        // banFactor
	Random func() float64 // from 0 to 1
}

// The bounds on what a formula may be; Python's own are wider.
const (
	maxFormula      = 1000 // bytes
	maxFormulaDepth = 50
)

func (f *Formula) String() string { return f.text }

// Eval works the formula out. Its error is one that Python has too, such as a
// division by zero.
func (f *Formula) Eval(v FormulaVars) (float64, error) {
	n, err := f.root(&v)
	if err == nil && math.IsNaN(n.f) {
		err = errors.New("the result is not a number")
	}
	return n.f, err
}

// term is a part of a formula.
type term func(*FormulaVars) (number, error)

// number is one of Python's: some operations take whole ones alone.
type number struct {
	f     float64
	whole bool
}

func truth(b bool) number {
	if b {
		return number{1, true}
	}
	return number{0, true}
}

// ParseFormula reads a formula. Its error says what isn't understood.
func ParseFormula(text string) (*Formula, error) {
	if len(text) > maxFormula {
		return nil, fmt.Errorf("it has %d bytes, the most is %d", len(text), maxFormula)
	}
	p := &formulaParser{rest: text}
	p.next()
	root, err := p.choice()
	if err == nil && p.token != "" {
		err = p.unexpected()
	}
	if err != nil {
		return nil, err
	}
	return &Formula{strings.TrimSpace(text), root}, nil
}

type formulaParser struct {
	rest  string
	token string // the one at hand; empty at the end
	depth int
}

func (p *formulaParser) next() {
	p.rest = strings.TrimLeft(p.rest, " \t\r\n")
	p.token = ""
	if p.rest == "" {
		return
	}
	n := 1
	switch c := p.rest[0]; {
	case isNameByte(c) && !isDigitByte(c):
		for n < len(p.rest) && (isNameByte(p.rest[n]) || p.rest[n] == '.') {
			n++
		}
	case isDigitByte(c) || c == '.':
		for n < len(p.rest) && (isNameByte(p.rest[n]) || p.rest[n] == '.' ||
			(p.rest[n] == '+' || p.rest[n] == '-') && (p.rest[n-1] == 'e' || p.rest[n-1] == 'E')) {
			n++
		}
	default:
		for _, op := range []string{"**", "//", "<<", ">>", "<=", ">=", "==", "!="} {
			if strings.HasPrefix(p.rest, op) {
				n = len(op)
			}
		}
	}
	p.token, p.rest = p.rest[:n], p.rest[n:]
}

func isDigitByte(c byte) bool { return '0' <= c && c <= '9' }

func isNameByte(c byte) bool {
	return isDigitByte(c) || c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func (p *formulaParser) take(tokens ...string) string {
	for _, t := range tokens {
		if p.token == t {
			p.next()
			return t
		}
	}
	return ""
}

func (p *formulaParser) unexpected() error {
	if p.token == "" {
		return errors.New("it ends too early")
	}
	return fmt.Errorf("%q isn't expected there", p.token)
}

// choice is x if c else y.
func (p *formulaParser) choice() (term, error) {
	if p.depth++; p.depth > maxFormulaDepth {
		return nil, errors.New("it is nested too deeply")
	}
	defer func() { p.depth-- }()
	yes, err := p.or()
	if err != nil || p.take("if") == "" {
		return yes, err
	}
	condition, err := p.or()
	if err != nil {
		return nil, err
	}
	if p.take("else") == "" {
		return nil, p.unexpected()
	}
	no, err := p.choice()
	return func(v *FormulaVars) (number, error) {
		c, err := condition(v)
		switch {
		case err != nil:
			return c, err
		case c.f != 0:
			return yes(v)
		}
		return no(v)
	}, err
}

func (p *formulaParser) or() (term, error)  { return p.logic("or", p.and, false) }
func (p *formulaParser) and() (term, error) { return p.logic("and", p.not, true) }

// logic joins terms of which the first one decides that isn't as it goes on.
func (p *formulaParser) logic(op string, part func() (term, error), goesOn bool) (term, error) {
	left, err := part()
	for err == nil && p.take(op) != "" {
		first := left
		var second term
		second, err = part()
		left = func(v *FormulaVars) (number, error) {
			n, err := first(v)
			if err != nil || (n.f != 0) != goesOn {
				return n, err
			}
			return second(v)
		}
	}
	return left, err
}

func (p *formulaParser) not() (term, error) {
	negate, some := false, false
	for n := 0; p.take("not") != ""; n++ {
		if negate, some = !negate, true; n > maxFormulaDepth {
			return nil, errors.New("it is nested too deeply")
		}
	}
	of, err := p.comparison()
	if !some {
		return of, err
	}
	return func(v *FormulaVars) (number, error) {
		n, err := of(v)
		return truth((n.f == 0) == negate), err
	}, err
}

// comparison is a < b <= c: each pair must hold.
func (p *formulaParser) comparison() (term, error) {
	first, err := p.shift()
	var ops []string
	terms := []term{first}
	for err == nil {
		op := p.take("<", "<=", ">", ">=", "==", "!=")
		if op == "" {
			break
		}
		var t term
		t, err = p.shift()
		ops, terms = append(ops, op), append(terms, t)
	}
	if len(ops) == 0 {
		return first, err
	}
	return func(v *FormulaVars) (number, error) {
		a, err := terms[0](v)
		for i, op := range ops {
			if err != nil {
				return a, err
			}
			var b number
			if b, err = terms[i+1](v); err != nil {
				return b, err
			}
			holds := map[string]bool{"<": a.f < b.f, "<=": a.f <= b.f, ">": a.f > b.f, ">=": a.f >= b.f, "==": a.f == b.f, "!=": a.f != b.f}[op]
			if !holds {
				return truth(false), nil
			}
			a = b
		}
		return truth(true), nil
	}, err
}

func (p *formulaParser) shift() (term, error) { return p.chain(p.sum, "<<", ">>") }
func (p *formulaParser) sum() (term, error)   { return p.chain(p.product, "+", "-") }
func (p *formulaParser) product() (term, error) {
	return p.chain(p.signed, "*", "/", "//", "%")
}

// chain joins terms with operators of one rank, from the left.
func (p *formulaParser) chain(part func() (term, error), ops ...string) (term, error) {
	left, err := part()
	for err == nil {
		op := p.take(ops...)
		if op == "" {
			break
		}
		a := left
		var b term
		b, err = part()
		left = binary(op, a, b)
	}
	return left, err
}

func binary(op string, left, right term) term {
	return func(v *FormulaVars) (number, error) {
		a, err := left(v)
		if err != nil {
			return a, err
		}
		b, err := right(v)
		if err != nil {
			return b, err
		}
		return apply(op, a, b)
	}
}

func apply(op string, a, b number) (number, error) {
	whole := a.whole && b.whole
	switch op {
	case "+":
		return number{a.f + b.f, whole}, nil
	case "-":
		return number{a.f - b.f, whole}, nil
	case "*":
		return number{a.f * b.f, whole}, nil
	case "/", "//", "%":
		if b.f == 0 {
			return number{}, errors.New("division by zero")
		}
		switch floor := math.Floor(a.f / b.f); op {
		case "/":
			return number{a.f / b.f, false}, nil
		case "//":
			return number{floor, whole}, nil
		default:
			m := math.Mod(a.f, b.f)
			if m != 0 && (m < 0) != (b.f < 0) {
				m += b.f // Python's has the divisor's sign
			}
			return number{m, whole}, nil
		}
	case "**":
		if a.f == 0 && b.f < 0 {
			return number{}, errors.New("0 can't be raised to a negative power")
		}
		n := math.Pow(a.f, b.f)
		if math.IsNaN(n) {
			return number{}, errors.New("a negative number can't be raised to a fraction")
		}
		return number{n, whole && b.f >= 0}, nil
	}
	if !whole {
		return number{}, fmt.Errorf("%s takes whole numbers, and %v %s %v has another", op, a.f, op, b.f)
	}
	if b.f < 0 {
		return number{}, fmt.Errorf("%v %s %v: can't shift by less than nothing", a.f, op, b.f)
	}
	if op == "<<" {
		return number{a.f * math.Exp2(b.f), true}, nil
	}
	return number{math.Floor(a.f / math.Exp2(b.f)), true}, nil
}

// signed is -x, +x, or a power.
func (p *formulaParser) signed() (term, error) {
	if p.depth++; p.depth > maxFormulaDepth {
		return nil, errors.New("it is nested too deeply")
	}
	defer func() { p.depth-- }()
	switch p.take("-", "+") {
	case "-":
		of, err := p.signed()
		return func(v *FormulaVars) (number, error) {
			n, err := of(v)
			return number{-n.f, n.whole}, err
		}, err
	case "+":
		return p.signed()
	}
	base, err := p.atom()
	if err != nil || p.take("**") == "" {
		return base, err
	}
	exponent, err := p.signed()
	return binary("**", base, exponent), err
}

func constant(n number) term { return func(*FormulaVars) (number, error) { return n, nil } }

func (p *formulaParser) atom() (term, error) {
	if p.take("(") != "" {
		inner, err := p.choice()
		if err == nil && p.take(")") == "" {
			err = p.unexpected()
		}
		return inner, err
	}
	name := p.token
	switch {
	case name == "":
		return nil, p.unexpected()
	case isDigitByte(name[0]) || name[0] == '.':
		f, err := strconv.ParseFloat(name, 64)
		if err != nil || strings.ContainsAny(name, "xXpP_") {
			return nil, fmt.Errorf("%q is no number", name)
		}
		p.next()
		return constant(number{f, !strings.ContainsAny(name, ".eE")}), nil
	}
	switch name {
	case "ban.Time":
		p.next()
		return func(v *FormulaVars) (number, error) { return number{v.Time, v.Time == math.Trunc(v.Time)}, nil }, nil
	case "ban.Count":
		p.next()
		return func(v *FormulaVars) (number, error) { return number{float64(v.Count), true}, nil }, nil
	case "banFactor":
		p.next()
		return func(v *FormulaVars) (number, error) { return number{v.Factor, v.Factor == math.Trunc(v.Factor)}, nil }, nil
	case "math.e":
		p.next()
		return constant(number{math.E, false}), nil
	case "math.pi":
		p.next()
		return constant(number{math.Pi, false}), nil
	case "True", "False":
		p.next()
		return constant(truth(name == "True")), nil
	}
	f, ok := functions[name]
	if !ok {
		if isNameByte(name[0]) {
			return nil, fmt.Errorf("%q is not known: there are ban.Time, ban.Count, banFactor, min, max, math.exp and the like", name)
		}
		return nil, p.unexpected()
	}
	p.next()
	if p.take("(") == "" {
		return nil, p.unexpected()
	}
	var args []term
	for p.take(")") == "" {
		if len(args) > 0 && p.take(",") == "" {
			return nil, p.unexpected()
		}
		if len(args) > 0 && p.take(")") != "" {
			break
		}
		a, err := p.choice()
		if err != nil {
			return nil, err
		}
		args = append(args, a)
	}
	if len(args) < f.least || len(args) > f.most {
		return nil, fmt.Errorf("%s can't take %d values", name, len(args))
	}
	return func(v *FormulaVars) (number, error) {
		given := make([]number, len(args))
		for i, a := range args {
			var err error
			if given[i], err = a(v); err != nil {
				return number{}, err
			}
		}
		n, err := f.call(v, given)
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		return n, err
	}, nil
}

type function struct {
	least, most int // values it takes
	call        func(v *FormulaVars, a []number) (number, error)
}

// functions are what a formula may call.
var functions = map[string]function{
	"min": {2, 20, func(_ *FormulaVars, a []number) (number, error) {
		return best(a, func(x, y float64) bool { return x < y }), nil
	}},
	"max": {2, 20, func(_ *FormulaVars, a []number) (number, error) {
		return best(a, func(x, y float64) bool { return x > y }), nil
	}},
	"abs": {1, 1, func(_ *FormulaVars, a []number) (number, error) { return number{math.Abs(a[0].f), a[0].whole}, nil }},
	"int": {1, 1, func(_ *FormulaVars, a []number) (number, error) { return number{math.Trunc(a[0].f), true}, nil }},
	"float": {1, 1, func(_ *FormulaVars, a []number) (number, error) {
		return number{a[0].f, false}, nil
	}},
	"round": {1, 1, func(_ *FormulaVars, a []number) (number, error) { return number{math.RoundToEven(a[0].f), true}, nil }},
	"pow":   {2, 2, func(_ *FormulaVars, a []number) (number, error) { return apply("**", a[0], a[1]) }},

	"math.exp":   real1(math.Exp),
	"math.log":   {1, 2, logarithm},
	"math.log2":  real1(math.Log2),
	"math.log10": real1(math.Log10),
	"math.sqrt":  real1(math.Sqrt),
	"math.pow": {2, 2, func(_ *FormulaVars, a []number) (number, error) {
		n, err := apply("**", a[0], a[1])
		return number{n.f, false}, err
	}},
	"math.floor": {1, 1, func(_ *FormulaVars, a []number) (number, error) { return number{math.Floor(a[0].f), true}, nil }},
	"math.ceil":  {1, 1, func(_ *FormulaVars, a []number) (number, error) { return number{math.Ceil(a[0].f), true}, nil }},

	"random.random": {0, 0, func(v *FormulaVars, _ []number) (number, error) { return number{v.Random(), false}, nil }},
	"random.uniform": {2, 2, func(v *FormulaVars, a []number) (number, error) {
		return number{a[0].f + (a[1].f-a[0].f)*v.Random(), false}, nil
	}},
	"random.randint": {2, 2, func(v *FormulaVars, a []number) (number, error) {
		if !a[0].whole || !a[1].whole || a[1].f < a[0].f {
			return number{}, errors.New("takes two whole numbers, the lesser one first")
		}
		return number{min(a[0].f+math.Floor((a[1].f-a[0].f+1)*v.Random()), a[1].f), true}, nil
	}},
}

// best is the first of the numbers that no other one beats.
func best(a []number, beats func(x, y float64) bool) number {
	b := a[0]
	for _, n := range a[1:] {
		if beats(n.f, b.f) {
			b = n
		}
	}
	return b
}

func real1(f func(float64) float64) function {
	return function{1, 1, func(_ *FormulaVars, a []number) (number, error) {
		r := f(a[0].f)
		if math.IsNaN(r) || math.IsInf(r, -1) {
			return number{}, fmt.Errorf("has no value for %v", a[0].f)
		}
		return number{r, false}, nil
	}}
}

func logarithm(v *FormulaVars, a []number) (number, error) {
	n, err := real1(math.Log).call(v, a[:1])
	if err != nil || len(a) == 1 {
		return n, err
	}
	base, err := real1(math.Log).call(v, a[1:])
	if err != nil {
		return base, err
	}
	return apply("/", n, base)
}
