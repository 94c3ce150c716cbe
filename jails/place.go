package jails

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Place is where an address is, as far as databases know.
type Place struct {
	Country string // two letters of ISO 3166-1; empty: not known
	ASN     uint32 // number of the autonomous system; 0: not known
	Network string // who runs that, in the words of the database's makers
}

func (p Place) String() string {
	var parts []string
	if p.Country != "" {
		parts = append(parts, p.Country)
	}
	if p.ASN != 0 {
		parts = append(parts, fmt.Sprintf("AS%d", p.ASN))
	}
	if p.Network != "" {
		parts = append(parts, p.Network)
	}
	return strings.Join(parts, " ")
}

// Where narrows a jail to some places. It spares only whom the databases know
// to be elsewhere: a failure from a place that isn't known counts. Without its
// database a jail would otherwise defend nothing, and nobody would notice.
type Where struct {
	OnlyCountries, ExceptCountries []string
	OnlyASN, ExceptASN             []uint32
}

// Empty says that the place doesn't matter.
func (w *Where) Empty() bool {
	return len(w.OnlyCountries)+len(w.ExceptCountries)+len(w.OnlyASN)+len(w.ExceptASN) == 0
}

// Spares says which part of a place keeps failures from there from counting;
// empty: they count.
func (w *Where) Spares(p Place) string {
	if p.Country != "" && (len(w.OnlyCountries) > 0 && !slices.Contains(w.OnlyCountries, p.Country) || slices.Contains(w.ExceptCountries, p.Country)) {
		return "country " + p.Country
	}
	if p.ASN != 0 && (len(w.OnlyASN) > 0 && !slices.Contains(w.OnlyASN, p.ASN) || slices.Contains(w.ExceptASN, p.ASN)) {
		return fmt.Sprintf("AS%d", p.ASN)
	}
	return ""
}

// SetPlaces has find tell where an address is. Without it no place is known.
func (j *Judge) SetPlaces(find func(netip.Addr) Place) { j.places = find }

// elsewhere says why a jail's place conditions spare a source.
func (j *Judge) elsewhere(js *jail, src netip.Prefix) string {
	if j.places == nil || js.conf == nil || js.conf.Where.Empty() {
		return ""
	}
	return js.conf.Where.Spares(j.places(src.Addr()))
}

// countries are those of ISO 3166-1, and XK, which the databases use for
// Kosovo.
const countries = " AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ " +
	"CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR " +
	"GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP " +
	"KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ " +
	"NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW " +
	"SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ " +
	"UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW "

func isCountry(s string) bool { return len(s) == 2 && strings.Contains(countries, " "+s+" ") }

// where takes the conditions on places. What a jail says itself takes the
// place of its opposite in [defaults].
func (r *reader) where(to *Where) {
	_, only := r.v["only_countries"]
	_, except := r.v["except_countries"]
	if only {
		to.ExceptCountries = nil
	} else if except {
		to.OnlyCountries = nil
	}
	if only && except {
		r.say(r.v["except_countries"], "stands beside only_countries, which leaves out all others already; write one of them")
	}
	r.countries("only_countries", &to.OnlyCountries)
	r.countries("except_countries", &to.ExceptCountries)

	_, only = r.v["only_asn"]
	_, except = r.v["except_asn"]
	if only {
		to.ExceptASN = nil
	} else if except {
		to.OnlyASN = nil
	}
	if only && except {
		r.say(r.v["except_asn"], "stands beside only_asn, which leaves out all others already; write one of them")
	}
	r.systems("only_asn", &to.OnlyASN)
	r.systems("except_asn", &to.ExceptASN)
	for _, key := range []string{"only_countries", "except_countries", "only_asn", "except_asn"} {
		if x, ok := r.v[key]; ok && r.l.placeless && !to.Empty() {
			r.say(x, `needs a database that tells where addresses are; write such as places = ["/usr/share/GeoIP/GeoLite2-Country.mmdb"] in %s`, SettingsFile)
		}
	}
}

func (r *reader) countries(key string, to *[]string) {
	items, ok := r.list(key, `"DE", "DK"`)
	if !ok {
		return
	}
	*to = nil
	for _, i := range items {
		upper := strings.ToUpper(i.text)
		switch {
		case isCountry(i.text):
			*to = append(*to, i.text)
		case upper == "UK":
			r.say(i.at, `%q is no country's code in ISO 3166-1; write "GB"`, i.text)
		case isCountry(upper):
			r.say(i.at, "%q is no country's code; write %q", i.text, upper)
		default:
			r.say(i.at, `%q is no country's code; write the two letters of ISO 3166-1, such as "DE"`, i.text)
		}
	}
}

func (r *reader) systems(key string, to *[]uint32) {
	x, ok := r.at(key)
	if !ok {
		return
	}
	all, ok := x.v.([]any)
	if !ok {
		all = []any{x.v}
	}
	*to = nil
	for i, v := range all {
		n, ok := v.(int64)
		if !ok || n < 1 || n >= 1<<32-1 {
			r.say(value{v, x.file, fmt.Sprintf("%s[%d]", x.key, i)}, "is %s; write the numbers of autonomous systems, without AS, such as %s = [64500, 64501]", is(v), key)
			continue
		}
		*to = append(*to, uint32(n))
	}
}
