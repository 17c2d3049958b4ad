// Package room is the waiting room in front of a campaign: when far more users come than can buy, each is told how many come before and how long
// that will take, and they are let in one after the other, as quickly as orders are served and while there are units left.
//
// Gateways share keys and nothing else. A place in the order is not kept anywhere, it is signed into the user's ticket: who comes before the
// campaign opens gets a number that is drawn by a key from the user's name, so that nobody draws twice and every gateway draws the
// same; who comes later gets the time of arrival. A gateway that restarts, or that a user changes to, puts the ticket where it belongs among those
// that it has, and each gateway lets its part of all in. So the order is exact within a gateway, and as even between gateways as users
// are spread over them.
package room

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Hall has the rooms of a gateway. Its methods may be called by several goroutines.
type Hall struct {
	options Options
	keys    atomic.Pointer[ring]
	shared  sharedUses
	rooms   map[string]*room // by campaign
}

// Options of a Hall. Keys, User and Campaigns are required.
type Options struct {
	Config
	// Keys sign tickets and draw places. SetKeys changes them.
	Keys []Key
	// Rate returns how many orders all lanes serve in a second, as measured, 0 if that is not known; nil means that it is not.
	Rate func() float64
	// Share returns this gateway's part of all that are let in, such as one by the number of gateways, and 0 while that is not known: then nobody is let
	// in. nil means all.
	Share func() float64
	// Left returns how many units of a campaign are to be had, and whether that is known; nil means that it is not.
	Left func(campaignID string) (units int64, known bool)
	// Uses is what gateways share of who has used a turn; nil means that each goes by what it knows itself.
	Uses Uses
	// Logger; nil means slog's default.
	Logger *slog.Logger
	// User returns the user whom the caller's token is of, and false if it is not good. Unlike elsewhere in a gateway it has to be verified:
	// whoever makes up names would enter a thousand times.
	User func(ctx context.Context, authorization string) (user string, ok bool)
}

// Config of a Hall; what is zero has a default.
type Config struct {
	// Campaigns that have a room.
	Campaigns []Campaign `yaml:"campaigns"`
	// RateShare is the part of what lanes serve that is let in; by default 0.9, which leaves room for what is no campaign's.
	RateShare float64 `yaml:"rate_share"`
	// RateDefault is how many users a second all gateways let in while it is not known what lanes serve; by default 100.
	RateDefault float64 `yaml:"rate_default"`
	// PassTTL is how long a pass is good; by default 2m.
	PassTTL time.Duration `yaml:"pass_ttl"`
	// Overcommit is how many users may have a pass for each unit that is left; by default 1.2, for not everybody buys.
	Overcommit float64 `yaml:"overcommit"`
	// PlacesMax bounds the users in one room; by default PlacesMaxDefault, about 100 MB. Whoever is one too many is told to come again later.
	PlacesMax int `yaml:"places_max"`
	// Gateways is how many gateways there are at least, each of which lets its part of all in. Those that share Redis or NATS count each other; this
	// is for others, and for a start while neither is there. By default 1.
	Gateways int `yaml:"gateways"`
}

// A Campaign has a room from now on; nobody is let in before it opens.
type Campaign struct {
	CampaignID string    `yaml:"campaign_id"`
	OpensAt    time.Time `yaml:"opens_at"`
	ClosesAt   time.Time `yaml:"closes_at"`
}

// Defaults and limits.
const (
	PlacesMaxDefault   = 1 << 20
	placesMaxMax       = 1 << 24 // 1.6 GB
	rateShareDefault   = 0.9
	rateDefaultDefault = 100
	rateMax            = 1e6
	passTTLDefault     = 2 * time.Minute
	passTTLMax         = time.Hour
	overcommitDefault  = 1.2
	overcommitMax      = 100
	campaignsMax       = 256
	gatewaysMax        = 4096
	keyBytesMin        = 32
	// tickEvery is how often users are let in, and tellEvery how often each is told where it stands.
	tickEvery = 100 * time.Millisecond
	tellEvery = time.Second
	// burst is how much of what was not used is made up for.
	burst = time.Second
	// gatherTime is how long a hall that starts while a campaign is open lets nobody in: those who waited at it before come back with their tickets,
	// in any order, and are put before those who come now.
	gatherTime = 2 * time.Second
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	full := c.withDefaults()
	switch {
	case len(c.Campaigns) > campaignsMax:
		return fmt.Errorf("room: %d campaigns, want at most %d", len(c.Campaigns), campaignsMax)
	case !(full.RateShare > 0 && full.RateShare <= 1):
		return fmt.Errorf("room: rate_share is %v, want more than 0 and at most 1", c.RateShare)
	case !(full.RateDefault > 0 && full.RateDefault <= rateMax):
		return fmt.Errorf("room: rate_default is %v, want more than 0 and at most %v", c.RateDefault, rateMax)
	case full.PassTTL < time.Second || full.PassTTL > passTTLMax:
		return fmt.Errorf("room: pass_ttl is %s, want 1s to %s", c.PassTTL, passTTLMax)
	case !(full.Overcommit >= 1 && full.Overcommit <= overcommitMax):
		return fmt.Errorf("room: overcommit is %v, want 1 to %d", c.Overcommit, overcommitMax)
	case full.PlacesMax < 1 || full.PlacesMax > placesMaxMax:
		return fmt.Errorf("room: places_max is %d, want 1 to %d", c.PlacesMax, placesMaxMax)
	case full.Gateways < 1 || full.Gateways > gatewaysMax:
		return fmt.Errorf("room: gateways is %d, want 1 to %d", c.Gateways, gatewaysMax)
	}
	seen := map[string]bool{}
	for _, campaign := range c.Campaigns {
		switch {
		case !namePattern.MatchString(campaign.CampaignID):
			return fmt.Errorf("room: campaign %q: want 1 to 64 of A-Z a-z 0-9 _ -", campaign.CampaignID)
		case seen[campaign.CampaignID]:
			return fmt.Errorf("room: campaign %s is named twice", campaign.CampaignID)
		case !campaign.OpensAt.Before(campaign.ClosesAt):
			return fmt.Errorf("room: campaign %s closes at %s and opens at %s", campaign.CampaignID, campaign.ClosesAt, campaign.OpensAt)
		}
		seen[campaign.CampaignID] = true
	}
	return nil
}

func (c Config) withDefaults() Config {
	orDefault(&c.RateShare, rateShareDefault)
	orDefault(&c.RateDefault, rateDefaultDefault)
	orDefault(&c.PassTTL, passTTLDefault)
	orDefault(&c.Overcommit, overcommitDefault)
	orDefault(&c.PlacesMax, PlacesMaxDefault)
	orDefault(&c.Gateways, 1)
	return c
}

func orDefault[T comparable](value *T, whenZero T) {
	var zero T
	if *value == zero {
		*value = whenZero
	}
}

// New makes a hall. Nobody is let in until it runs.
func New(options Options) (*Hall, error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	keys, err := newRing(options.Keys)
	if err != nil {
		return nil, err
	}
	if options.User == nil {
		return nil, errors.New("room: there is nobody who verifies tokens: a waiting room needs to know its users")
	}
	options.Config = options.withDefaults()
	if options.Rate == nil {
		options.Rate = func() float64 { return 0 }
	}
	if options.Share == nil {
		options.Share = func() float64 { return 1 }
	}
	if options.Left == nil {
		options.Left = func(string) (int64, bool) { return 0, false }
	}
	h := &Hall{options: options, rooms: map[string]*room{}}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	h.keys.Store(keys)
	h.shared.uses, h.shared.logger, h.shared.timeMax = options.Uses, options.Logger, usesTimeMax
	for _, campaign := range options.Campaigns {
		h.rooms[campaign.CampaignID] = newRoom(campaign, options.Config)
	}
	return h, nil
}

// Run lets users in until ctx ends, which is no error. It is called once.
func (h *Hall) Run(ctx context.Context) error {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := time.Now()
		rate := h.options.Rate() * h.options.RateShare
		if rate <= 0 {
			rate = h.options.RateDefault
		}
		share := min(max(h.options.Share(), 0), 1)
		for id, r := range h.rooms {
			left, known := h.options.Left(id)
			if !known {
				left = math.MaxInt64
			}
			mine := min(rate, rateMax) * share
			if began.After(r.campaign.OpensAt) && now.Sub(began) < gatherTime {
				mine = 0
			}
			r.tick(now, mine, share, left)
		}
	}
}

// Campaigns names the campaigns that have a room.
func (h *Hall) Campaigns() []string { return slices.Sorted(maps.Keys(h.rooms)) }

// Stats says how one room stands at this gateway. Counters count from its start.
type Stats struct {
	CampaignID string
	// Waiting are those whose turn has not come, also those who are not there at the moment, and Places all that the room keeps.
	Waiting, Places int
	// Admitted counts those who were let in, and Outstanding has those of them whose pass is good and not used.
	Admitted    uint64
	Outstanding int
	// Unshared counts orders that were let through without asking what gateways share, in all rooms of this gateway.
	Unshared uint64
}

// Stats returns how the rooms stand, in the order in which they open.
func (h *Hall) Stats() []Stats {
	var all []Stats
	for _, r := range h.inOrder() {
		r.mu.Lock()
		all = append(all, Stats{
			CampaignID: r.campaign.CampaignID, Waiting: r.line.length + len(r.returned), Places: r.places.made,
			Admitted: r.letIn, Outstanding: r.outstanding, Unshared: h.shared.unshared.Load(),
		})
		r.mu.Unlock()
	}
	return all
}

// A rank is a place in the order: a smaller one comes first.
type rank struct {
	// late is how long after the opening the user came, in ns; 0 for all who came before.
	late int64
	draw uint64
}

func (r rank) compare(other rank) int {
	return cmp.Or(cmp.Compare(r.late, other.late), cmp.Compare(r.draw, other.draw))
}

// A room is the order of one campaign's users. What it keeps of each user is placeBytes, of at most Config.PlacesMax of them, and as much
// again of those who order.
type room struct {
	campaign Campaign
	config   Config

	made time.Time

	mu sync.Mutex
	// places are all that were ever taken, and byUser says whose they are.
	places slab
	byUser map[hash]placeID
	// line has those by rank whose turn has not come.
	line   line
	opened bool
	// stays are those with a stream.
	stays map[placeID]*stay
	// returned came back after their turn had come, and are next.
	returned []placeID
	// cameBack and servedBack count those who were ever put into returned, and taken out.
	cameBack, servedBack uint32
	// budget is how many may be let in, at rate a second, as of ticked.
	budget, rate float64
	ticked       time.Time
	// passes are those that were given and not used, the oldest first.
	passes      []placeID
	outstanding int
	letIn       uint64 // ever
	// uses are the turns that were used, by user.
	uses    map[hash]used
	over    chan struct{} // closed while nothing is left
	soldOut bool
}

// placeBytes is how much memory a place takes with all that leads to it, about.
const placeBytes = 96

// A place is that of one user. There is no pointer in it.
type place struct {
	rank rank
	// pass is until when its pass is good, in unix ns; 0 before it is let in.
	pass int64
	// cameBack is its number among those in returned; 0 for none.
	cameBack uint32
	// expected is until when it is asked for again by polling, in s after the room was made; 0 for not at all.
	expected uint32
	passed   bool // its turn came
	unused   bool // the pass
	spent    bool // the turn: an order was placed
}

// A stay is a place that streams wait at.
type stay struct {
	streams  int
	admitted chan struct{} // closed when it is let in
}

func newRoom(campaign Campaign, config Config) *room {
	r := &room{campaign: campaign, config: config, made: time.Now()}
	r.clear()
	return r
}

// clear forgets everybody. The lock is held, or nobody else knows the room.
func (r *room) clear() {
	r.places, r.byUser, r.stays, r.uses = slab{}, map[hash]placeID{}, map[placeID]*stay{}, map[hash]used{}
	r.line = line{places: &r.places}
	r.returned, r.passes, r.outstanding = nil, nil, 0
	r.over, r.soldOut = make(chan struct{}), false
}

// errFull says that a room takes nobody more.
var errFull = errors.New("the waiting room is full")

// enter puts a user where its rank belongs, and returns the rank of the place. Who has a place keeps it, unless it wants another turn again, and has
// placed an order in that one.
func (r *room) enter(user string, at rank, again bool) (placeID, rank, error) {
	who := hashOf([]byte(user))
	r.mu.Lock()
	defer r.mu.Unlock()
	id, known := r.byUser[who]
	switch {
	case known && (!again || !r.places.at(id).spent):
		return id, r.places.at(id).rank, nil
	case known && r.places.at(id).passed && r.places.at(id).cameBack == 0: // Nobody asks for the old place any more.
		*r.places.at(id) = place{rank: at}
		r.line.insert(id)
		return id, at, nil
	case r.places.made >= r.config.PlacesMax:
		return 0, rank{}, errFull
	}
	id = r.places.make(place{rank: at})
	r.byUser[who] = id
	r.line.insert(id)
	return id, at, nil
}

// stay counts a stream that waits at a place, until leave is called. It returns what is closed when the place is let in.
func (r *room) stay(id placeID) (admitted <-chan struct{}, leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	here := r.stays[id]
	if here == nil {
		here = &stay{admitted: make(chan struct{})}
		r.stays[id] = here
	}
	here.streams++
	r.comeBack(id)
	return here.admitted, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if here.streams--; here.streams == 0 && r.stays[id] == here {
			delete(r.stays, id)
		}
	}
}

// comeBack makes a place the next one whose turn came while nobody was there. The lock is held.
func (r *room) comeBack(id placeID) {
	if int(id) >= r.places.made { // The campaign is over, and everybody forgotten.
		return
	}
	if p := r.places.at(id); p.passed && p.pass == 0 && p.cameBack == 0 {
		r.cameBack++
		p.cameBack = r.cameBack
		r.returned = append(r.returned, id)
	}
}

// present is whether somebody waits at a place, by a stream or by polling, as of the last tick. The lock is held.
func (r *room) present(id placeID) bool {
	return r.stays[id] != nil || r.places.at(id).expected > r.seconds(r.ticked)
}

// seconds returns how long after the room was made a moment is, in whole seconds.
func (r *room) seconds(at time.Time) uint32 { return uint32(max(0, at.Sub(r.made)/time.Second)) }

// expect notes that a place is asked for again until a moment.
func (r *room) expect(id placeID, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if int(id) >= r.places.made { // The campaign is over, and everybody forgotten.
		return
	}
	r.places.at(id).expected = r.seconds(until) + 1
	r.comeBack(id)
}

// tick lets in whoever's turn it is: rate users a second, and share of those for whom there are units.
func (r *room) tick(now time.Time, rate, share float64, left int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate = rate
	if !r.opened {
		if now.Before(r.campaign.OpensAt) {
			return
		}
		r.opened, r.ticked = true, now
	}
	closed := !now.Before(r.campaign.ClosesAt)
	r.setSoldOut(left <= 0 || closed)
	if closed && len(r.stays) == 0 && r.places.made > 0 {
		r.clear()
		r.setSoldOut(true)
	}
	r.budget = min(r.budget+rate*now.Sub(r.ticked).Seconds(), max(1, rate*burst.Seconds()))
	r.ticked = now
	r.forgetPasses(now)
	if r.soldOut || rate <= 0 {
		return
	}
	room := math.Ceil(float64(left)*share*r.config.Overcommit) - float64(r.outstanding)
	for looks := absentMax; r.budget >= 1 && room >= 1; {
		id, ok := r.next(&looks)
		if !ok {
			return
		}
		r.budget--
		room--
		r.letIn++
		r.places.at(id).passed = true
		r.givePass(id, now)
		if here := r.stays[id]; here != nil {
			close(here.admitted)
			here.admitted = nil
		}
	}
}

// absentMax bounds how many who are not there are passed over in one tick: others wait for the lock meanwhile.
const absentMax = 200_000

// next returns who is let in next, false if nobody is found within so many looks. Whoever is not there when its turn comes is passed over, and is
// next when it comes back. The lock is held.
func (r *room) next(looks *int) (placeID, bool) {
	for ; len(r.returned) > 0 && *looks > 0; *looks-- {
		id := r.returned[0]
		r.returned = r.returned[1:]
		r.servedBack++
		p := r.places.at(id)
		p.cameBack = 0
		if r.present(id) && p.pass == 0 {
			return id, true
		}
	}
	for ; *looks > 0; *looks-- {
		id, ok := r.line.pop()
		if !ok {
			return 0, false
		}
		r.places.at(id).passed = true
		if r.present(id) {
			return id, true
		}
	}
	return 0, false
}

// setSoldOut tells everybody who waits when nothing is left, and lets them wait again when something is. The lock is held.
func (r *room) setSoldOut(is bool) {
	switch {
	case is && !r.soldOut:
		close(r.over)
	case !is && r.soldOut:
		r.over = make(chan struct{})
	}
	r.soldOut = is
}

// givePass gives a place a pass from now on. The lock is held.
func (r *room) givePass(id placeID, now time.Time) {
	p := r.places.at(id)
	p.pass = now.Add(r.config.PassTTL).UnixNano()
	if p.spent { // With a spent turn the same order may be asked for again.
		return
	}
	if !p.unused {
		p.unused = true
		r.outstanding++
		r.passes = append(r.passes, id)
	}
}

// forgetPasses counts passes that are over as used. The lock is held.
func (r *room) forgetPasses(now time.Time) {
	for len(r.passes) > 0 {
		p := r.places.at(r.passes[0])
		if p.unused && now.UnixNano() < p.pass {
			return
		}
		r.use(p)
		r.passes = r.passes[1:]
	}
}

// use counts a pass as used. The lock is held.
func (r *room) use(p *place) {
	if p.unused {
		p.unused = false
		r.outstanding--
	}
}

// spend notes that an order was placed at a moment, in µs after the opening, by a user who may have a place here. The lock is held.
func (r *room) spend(user hash, at int64) {
	id, known := r.byUser[user]
	if !known {
		return
	}
	if p := r.places.at(id); time.Duration(p.rank.late).Microseconds() <= at {
		p.spent = true
		r.use(p)
	}
}

// A State is where a user stands.
type State uint8

// The states.
const (
	NotOpen State = iota + 1
	Waiting
	Admitted
	SoldOut
	Closed
)

// A standing is what a user is told.
type standing struct {
	state  State
	before int64
	eta    time.Duration // 0 while it is not known
	until  time.Time     // of the pass
}

// look returns where a place stands. One who was let in gets a new pass when the old one is over: its turn stays.
func (r *room) look(now time.Time, id placeID) standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !now.Before(r.campaign.ClosesAt) { // The place may be forgotten.
		return standing{state: Closed}
	}
	p := r.places.at(id)
	switch {
	case !r.opened:
		return standing{state: NotOpen}
	case p.pass != 0 && p.spent: // What came of the order can be asked for also once nothing is left.
		return r.admitted(now, id, p)
	case r.soldOut:
		return standing{state: SoldOut}
	case p.pass != 0:
		return r.admitted(now, id, p)
	}
	s := standing{state: Waiting}
	if p.passed {
		s.before = max(0, int64(p.cameBack)-int64(r.servedBack)-1)
	} else {
		s.before = int64(len(r.returned) + r.line.before(p.rank))
	}
	if r.rate > 0 {
		s.eta = time.Duration(float64(s.before+1) / r.rate * float64(time.Second))
	}
	return s
}

// admitted is where a place stands that was let in. The lock is held.
func (r *room) admitted(now time.Time, id placeID, p *place) standing {
	if now.UnixNano() >= p.pass {
		r.givePass(id, now)
	}
	return standing{state: Admitted, until: time.Unix(0, p.pass)}
}

// How often who polls is to ask again.
const (
	pollMin = time.Second
	pollMax = 5 * time.Minute
	// pollPart is the part of the time until its turn that a user lets pass: so all who wait ask no oftener than a few times the rate at which users
	// are let in, however many they are.
	pollPart = 4
	// pollUnknown is for when that time is not known, and pollSpread spreads those who come back when the campaign opens.
	pollUnknown = 5 * time.Second
	pollSpread  = 2 * time.Second
	// pollGrace is how much later than it was told somebody may ask again and counts as there; twice the time that it was told counts besides.
	pollGrace = 5 * time.Second
)

// poll says where a place stands and when to ask again, 0 for not any more. Until then somebody waits there.
func (r *room) poll(now time.Time, id placeID) (s standing, after time.Duration) {
	r.expect(id, now.Add(pollGrace)) // Who was passed over is the next one, and is told so.
	s = r.look(now, id)
	if s.state >= Admitted {
		return s, 0
	}
	switch {
	case s.state == NotOpen:
		opens := max(0, r.campaign.OpensAt.Sub(now))
		after = min(opens, pollMax) + rand.N(pollSpread)
	case s.eta == 0:
		after = pollUnknown
	default:
		after = s.eta / pollPart
	}
	after = min(max(after, pollMin), pollMax+pollSpread)
	after -= rand.N(after/10 + 1)
	if s.state == NotOpen {
		after = max(after, min(r.campaign.OpensAt.Sub(now), pollMax)) // Before it opens there is nothing to hear.
	}
	r.expect(id, now.Add(2*after+pollGrace))
	return s, after
}

// wait tells a user where it stands until it is let in or there is nothing to wait for. It returns the error of send, or of ctx.
func (r *room) wait(ctx context.Context, id placeID, send func(standing) error) error {
	admitted, leave := r.stay(id)
	defer leave()
	for {
		r.mu.Lock()
		over := r.over
		r.mu.Unlock()
		now := time.Now()
		s := r.look(now, id)
		if err := send(s); err != nil {
			return err
		}
		if s.state >= Admitted {
			return nil
		}
		again := tellEvery - rand.N(tellEvery/5)
		if s.state == NotOpen { // There is nothing to tell before the draw.
			again = max(again, r.campaign.OpensAt.Sub(now))
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-admitted:
		case <-over:
		case <-timer.C:
		}
		timer.Stop()
	}
}
