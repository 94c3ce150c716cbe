package jails

import (
	"math"
	"strings"
	"testing"
	"time"
)

func eval(t *testing.T, text string, seconds float64, count int, factor float64) (float64, error) {
	t.Helper()
	f, err := ParseFormula(text)
	if err != nil {
		return 0, err
	}
	return f.Eval(FormulaVars{seconds, count, factor, func() float64 { return 0.25 }})
}

// TestFormula has what Python makes of these for ban.Time 600, ban.Count 3,
// banFactor 2, and 0.25 as the random number.
func TestFormula(t *testing.T) {
	for text, want := range map[string]float64{
		"ban.Time * (1<<(ban.Count if ban.Count<20 else 20)) * banFactor":         9600,
		"ban.Time * math.exp(float(ban.Count+1)*banFactor)/math.exp(1*banFactor)": 600 * math.Exp(8) / math.Exp(2),
		"-2 ** 2":                                  -4,
		"2 ** -1 ** 2":                             0.5,
		"2 ** 3 ** 2":                              512,
		"7 // 2 + -7 // 2 - 7 % -3":                3 - 4 + 2,
		"1 << 2 + 1":                               8,
		"9 >> 1 << 1":                              8,
		"10 - 3 - 2":                               5,
		"1 < 2 <= 2 != 3":                          1,
		"1 < 2 > 5":                                0,
		"not 1 > 2 and 0 or 5":                     5,
		"1 if 0 else 2 if 0 else 3":                3,
		"max(ban.Time, 3e2, .5)":                   600,
		"min(round(2.5), int(3.9))":                2,
		"round(3.5) + abs(-2) + pow(2, 3)":         14,
		"math.log(8, 2) + math.floor(1.9)":         4,
		"ban.Time + random.random() * 60":          615,
		"random.uniform(10, 20)":                   12.5,
		"random.randint(1, 4)":                     2,
		"1 and 0 or ban.Count == 3 and 7 / 2":      3.5,
		"(1/0 if ban.Count > 5 else 4)":            4,
		"ban.Time*ban.Count**2":                    5400,
		" ban.Time * \n (True + 1) ":               1200,
		"math.sqrt(16) + math.pow(2, 2) + math.pi": 8 + math.Pi,
	} {
		got, err := eval(t, text, 600, 3, 2)
		if err != nil || math.Abs(got-want) > 1e-9*math.Abs(want) {
			t.Errorf("%s = %v, %v; want %v", text, got, err, want)
		}
	}
}

// TestFormulaRefuses: what isn't arithmetic isn't understood, and so can't be
// executed; what Python fails at fails.
func TestFormulaRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "ends too early",
		"ban.Time *":                      "ends too early",
		"ban.Time 3":                      `"3" isn't expected`,
		"(1":                              "ends too early",
		"1)":                              `")" isn't expected`,
		"__import__('os').system('id')":   "not known",
		"ban.__class__":                   `"ban.__class__" is not known`,
		"open('/etc/passwd')":             "not known",
		"`id`":                            "isn't expected",
		"'a' * 3":                         "isn't expected",
		"[1][0]":                          "isn't expected",
		"lambda: 1":                       "not known",
		"math.exp":                        "ends too early",
		"math.exp()":                      "can't take 0",
		"min(1)":                          "can't take 1",
		"1.5 << 2":                        "whole numbers",
		"1 << -1":                         "less than nothing",
		"1 / (ban.Count - 3)":             "division by zero",
		"math.log(0)":                     "no value",
		"(0-8) ** 0.5":                    "fraction",
		"1 if 2":                          "ends too early",
		"0x10":                            "is no number",
		strings.Repeat("(", 300):          "too deeply",
		strings.Repeat("-", 300) + "1":    "too deeply",
		strings.Repeat("not ", 200) + "1": "too deeply",
		strings.Repeat("1+", 1000) + "1":  "bytes",
		"random.randint(4, 1)":            "lesser one first",
		"math.exp(math.exp(9)) - math.exp(math.exp(9))": "not a number",
	} {
		if got, err := eval(t, text, 600, 3, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q = %v, %v; want an error with %q", text, got, err, want)
		}
	}
}

// A formula that fails later than it was tried leaves the ban time as it is,
// and one that grows beyond all bounds meets the longest ban.
func TestFormulaBounds(t *testing.T) {
	for _, c := range []struct {
		text    string
		strikes int
		want    time.Duration
	}{
		{"ban.Time * 3", 1, 3 * time.Hour},
		{"ban.Time / 3", 1, time.Hour},
		{"ban.Time / (ban.Count - 50)", 50, time.Hour},
		{"ban.Time * math.exp(1000)", 1, maxBan},
		{"ban.Time * 2 ** ban.Count", 5000, maxBan},
		{"-ban.Time", 2, time.Hour},
	} {
		f, err := ParseFormula(c.text)
		if err != nil {
			t.Fatal(err)
		}
		j := Jail{Name: "x", BanTime: time.Hour, Increment: Increment{Enabled: true, Formula: f}}
		if got := j.banTime(c.strikes, addr("192.0.2.1"), 0); got != c.want {
			t.Errorf("%s after %d bans: %v, want %v", c.text, c.strikes, got, c.want)
		}
	}
}

func FuzzFormula(f *testing.F) {
	for _, s := range []string{"ban.Time * (1<<ban.Count)", "1 if 2 else 3", "math.exp(1)**-2", "min(1,2,)", "((", "1e400", "not not 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if x, err := ParseFormula(s); err == nil {
			_, _ = x.Eval(FormulaVars{600, 3, 1, func() float64 { return 0.5 }})
		}
	})
}
