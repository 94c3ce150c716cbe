package matcher

import "time"

// civil is a date as a line writes it: which parts it has, and which are to
// be guessed from the time the line was read.
type civil struct {
	year, month, day int // 0: not written
	hour, min, sec   int
	nsec             int
	offset           int   // seconds east of UTC, if zoned
	epoch            int64 // seconds, if absolute
	yearday          int   // 1 is 1 January; 0: not written
	zoned, absolute  bool
}

// noYear is the year 0, which a line may write but the calendar lacks.
const noYear = -1

// clock turns civil dates into times, by the rules that fail2ban has for
// parts a date leaves out: no year is this year, or last year if that were
// more than a day ahead; no day is today, or yesterday if that were ahead;
// no zone is the stream's.
type clock struct {
	loc              *time.Location
	now              int64 // reference
	year, month, day int   // of now in loc

	// The offset of loc within one hour, since lines come in the order of
	// time: asking time.Location for each costs more than all the rest.
	hour   int64 // key of the hour, see unix
	offset int64 // to add to the civil seconds
}

// set makes now the reference.
func (k *clock) set(now time.Time) {
	if u := now.Unix(); u != k.now || k.year == 0 {
		k.now = u
		y, m, d := now.In(k.loc).Date()
		k.year, k.month, k.day = y, int(m), d
	}
}

// time resolves c. It says no to dates that don't exist, such as 30 February.
func (k *clock) time(c *civil) (time.Time, bool) {
	if c.absolute {
		return time.Unix(c.epoch, int64(c.nsec)).In(k.loc), true
	}
	if c.year == noYear {
		return time.Time{}, false
	}
	y, m, d := c.year, c.month, c.day
	guessYear := y == 0
	if guessYear {
		y = k.year
	}
	if c.yearday > 0 && (m == 0 || d == 0) {
		m, d = dayOfYear(y, c.yearday)
	}
	if (m == 0) != (d == 0) {
		return time.Time{}, false // a month without a day says nothing
	}
	guessDay := m == 0 && d == 0
	if guessDay {
		m, d = k.month, k.day
	}
	if d > daysIn(y, m) {
		if !guessYear || m != 2 || d != 29 {
			return time.Time{}, false
		}
		// 29 February, and this year has none: the last that had one.
		for d > daysIn(y, m) {
			y--
		}
	}
	t := k.unix(c, y, m, d)
	if guessDay && t > k.now {
		t = k.unix(c, y, m, d-1)
	}
	if guessYear && t > k.now+24*3600 {
		y--
		if d > daysIn(y, m) {
			return time.Time{}, false
		}
		t = k.unix(c, y, m, d)
	}
	return time.Unix(t, int64(c.nsec)).In(k.loc), true
}

// unix is the time of c's clock on the given day.
func (k *clock) unix(c *civil, y, m, d int) int64 {
	h := days(y, m, d)*24 + int64(c.hour)
	s := int64(c.min)*60 + int64(c.sec)
	if c.zoned {
		return h*3600 + s - int64(c.offset)
	}
	if h == k.hour && k.hour != 0 {
		return h*3600 + s + k.offset
	}
	first := time.Date(y, time.Month(m), d, c.hour, 0, 0, 0, k.loc).Unix()
	last := time.Date(y, time.Month(m), d, c.hour, 59, 59, 0, k.loc).Unix()
	if last-first == 3599 {
		k.hour, k.offset = h, first-h*3600
		return first + s
	}
	return time.Date(y, time.Month(m), d, c.hour, c.min, c.sec, 0, k.loc).Unix()
}

// dayOfYear gives month and day of a year's nth day.
func dayOfYear(y, n int) (m, d int) {
	for m = 1; m < 12 && n > daysIn(y, m); m++ {
		n -= daysIn(y, m)
	}
	return m, n
}

// weekDay gives the day of the year from a week and a weekday (0: Monday).
// Days before the year's first start (0: Monday, 6: Sunday) are in week 0.
func weekDay(y, week, weekday, start int) int {
	jan1 := int((days(y, 1, 1) + 3) % 7)
	first := (jan1 - start + 7) % 7
	n := (week-1)*7 + (weekday-start+7)%7 + 1
	if first != 0 {
		n += 7 - first
	}
	return n
}

// days counts the days from 1 January 1970 to a date of the Gregorian
// calendar. A day out of its month's range counts on.
func days(y, m, d int) int64 {
	if m <= 2 {
		y--
		m += 12
	}
	era := y / 400
	yoe := y - era*400
	doy := (153*(m-3)+2)/5 + d - 1
	doe := yoe*365 + yoe/4 - yoe/100 + doy
	return int64(era)*146097 + int64(doe) - 719468
}

func daysIn(y, m int) int {
	switch m {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if y%4 == 0 && (y%100 != 0 || y%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// zoneOffset is the offset of a zone's short name in seconds. Short names
// are ambiguous (CST, IST, AST); these are the readings that fail2ban has,
// so that a filter means the same here.
func zoneOffset(name string) (int, bool) {
	const h = 3600
	switch name {
	case "Z", "UTC", "GMT", "WET", "EGST", "WT":
		return 0, true
	case "A", "CET", "DFT", "WAT", "WEDT", "WEST":
		return 1 * h, true
	case "B", "CAT", "CEDT", "CEST", "EET", "SAST", "WAST":
		return 2 * h, true
	case "C", "EAT", "EEDT", "EEST", "IDT", "MSK":
		return 3 * h, true
	case "D", "AMT", "AZT", "GET", "GST", "KUYT", "MSD", "MUT", "RET", "SAMT", "SCT":
		return 4 * h, true
	case "E", "AMST", "AQTT", "AZST", "HMT", "MAWT", "MVT", "PKT", "TFT", "TJT", "TMT", "UZT", "YEKT":
		return 5 * h, true
	case "F", "ALMT", "BIOT", "BTT", "IOT", "KGT", "NOVT", "OMST", "YEKST":
		return 6 * h, true
	case "G", "CXT", "DAVT", "HOVT", "ICT", "KRAT", "NOVST", "OMSST", "THA", "WIB":
		return 7 * h, true
	case "H", "ACT", "AWST", "BDT", "BNT", "CAST", "HKT", "IRKT", "KRAST", "MYT", "PHT", "SGT", "ULAT", "WITA", "WST":
		return 8 * h, true
	case "I", "AWDT", "IRKST", "JST", "KST", "PWT", "TLT", "WDT", "WIT", "YAKT":
		return 9 * h, true
	case "K", "AEST", "PGT", "VLAT", "YAKST", "YAPT":
		return 10 * h, true
	case "L", "AEDT", "LHDT", "MAGT", "NCT", "PONT", "SBT", "VLAST", "VUT":
		return 11 * h, true
	case "M", "ANAST", "ANAT", "FJT", "GILT", "MAGST", "MHT", "NZST", "PETST", "PETT", "TVT", "WFT":
		return 12 * h, true
	case "FJST", "NZDT":
		return 13 * h, true
	case "N", "AZOT", "CVT", "EGT":
		return -1 * h, true
	case "O", "BRST", "FNT", "PMDT", "UYST", "WGST":
		return -2 * h, true
	case "P", "ADT", "ART", "BRT", "CLST", "FKST", "GFT", "HAA", "PMST", "PYST", "SRT", "UYT", "WGT":
		return -3 * h, true
	case "Q", "AST", "BOT", "CLT", "COST", "EDT", "FKT", "GYT", "HAE", "HNA", "PYT":
		return -4 * h, true
	case "R", "CDT", "COT", "EASST", "ECT", "EST", "ET", "HAC", "HNE", "PET":
		return -5 * h, true
	case "S", "CST", "EAST", "GALT", "HAR", "HNC", "MDT":
		return -6 * h, true
	case "T", "HAP", "HNR", "MST", "PDT":
		return -7 * h, true
	case "U", "CIST", "HAY", "HNP", "PST", "PT":
		return -8 * h, true
	case "V", "AKST", "GAMT", "GIT", "HADT", "HNY":
		return -9 * h, true
	case "W", "CKT", "HAST", "HST", "TAHT", "TKT":
		return -10 * h, true
	case "X", "NUT", "SST":
		return -11 * h, true
	case "Y":
		return -12 * h, true
	case "NFT":
		return 11*h + h/2, true
	case "ACDT", "LHST":
		return 10*h + h/2, true
	case "ACST":
		return 9*h + h/2, true
	case "CCT", "MMT":
		return 6*h + h/2, true
	case "NPT":
		return 5*h + 3*h/4, true
	case "SLT":
		return 5*h + h/2, true
	case "AFT", "IRDT":
		return 4*h + h/2, true
	case "IRST":
		return 3*h + h/2, true
	case "HAT", "NDT":
		return -2*h - h/2, true
	case "HNT", "NST", "NT":
		return -3*h - h/2, true
	case "HLV", "VET":
		return -4*h - h/2, true
	case "MART", "MIT":
		return -9*h - h/2, true
	}
	return 0, false
}
