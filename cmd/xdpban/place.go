package main

import (
	"net/netip"

	"xdpban/internal/control"
	"xdpban/internal/place"
	"xdpban/jails"
)

// places tell where addresses are.
type places struct{ place.Places }

func (p *places) Find(addr netip.Addr) jails.Place { return jails.Place(p.Places.Find(addr)) }

// openPlaces takes the databases that the settings name. What can't be used is
// told of, and nothing more.
func (a *app) openPlaces() *places {
	p := &places{}
	if err := p.Follow(a.settings.Places); err != nil {
		a.warn("%v", err)
	}
	return p
}

// placeOf is where an address is, for the API's types; nil: not known.
func (p *places) placeOf(addr netip.Addr) *control.Place {
	at := control.Place(p.Find(addr))
	if at == (control.Place{}) {
		return nil
	}
	return &at
}
