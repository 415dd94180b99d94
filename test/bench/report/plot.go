package report

import (
	"bytes"
	"cmp"
	"fmt"
	"image/color"
	"maps"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// barConnections is how many connections the bars are of.
const barConnections = 32

// drawn is a plot that is ready to be written.
type drawn struct {
	file, title string
	svg         []byte
}

// line is one line of a plot; dashed ones are baselines.
type line struct {
	name   string
	dashed bool
	points plotter.XYs
}

// colours can be told apart by people who do not see all of them, the first seven at least (Okabe and Ito).
var colours = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff}, color.RGBA{0xd5, 0x5e, 0x00, 0xff}, color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff}, color.RGBA{0xe6, 0x9f, 0x00, 0xff}, color.RGBA{0x56, 0xb4, 0xe9, 0xff}, color.Black,
	color.RGBA{0x8c, 0x56, 0x4b, 0xff}, color.Gray{0x80}, color.RGBA{0xbc, 0xbd, 0x22, 0xff},
}

// plots draws what r has enough figures for.
func (r *Results) plots() ([]drawn, error) {
	var all []drawn
	rate := func(row Row) float64 { return row.PerSecond }
	p99 := func(row Row) float64 { return row.P99 }
	closed := func(c Class) func(Row) bool {
		return func(row Row) bool { return row.Class == c && row.Offered == 0 }
	}
	for _, p := range []struct {
		file, title, x, y string
		of                func(Row) bool
		axis              axis
		yOf               func(Row) float64
	}{
		{"read-rate.svg", "Reads per second", "connections", "records per second", closed(Read), byConnections, rate},
		{"read-p99.svg", "Reads: 99th percentile of latency", "connections", "ms", closed(Read), byConnections, p99},
		{"write-rate.svg", "Writes per second", "connections", "records per second", closed(Write), byConnections, rate},
		{"write-p99.svg", "Writes: 99th percentile of latency", "connections", "ms", closed(Write), byConnections, p99},
		{"open-p99.svg", "At a given rate: 99th percentile of latency, from when a request was due", "due per second", "ms",
			func(row Row) bool { return row.Offered > 0 }, byOffered, p99},
		{"subjects-rate.svg", "Rate by number of subjects", "subjects", "records per second",
			func(row Row) bool { return row.Baseline == "" && row.Subjects > 0 && row.Offered == 0 }, bySubjects, rate},
	} {
		lines := r.lines(p.of, p.axis, p.yOf)
		if len(lines) == 0 {
			continue
		}
		svg, err := drawLines(p.title, p.x, p.y, lines)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.file, err)
		}
		all = append(all, drawn{p.file, p.title, svg})
	}
	if rows := r.barRows(); len(rows) > 0 {
		title := fmt.Sprintf("Beside the baselines: records per second at %d connections", barConnections)
		svg, err := drawBars(title, rows)
		if err != nil {
			return nil, err
		}
		all = append(all, drawn{"baselines.svg", title, svg})
	}
	return all, nil
}

// axis is what a plot goes along.
type axis int

const (
	byConnections axis = iota
	bySubjects
	byOffered
)

// of is where a row lies on the axis.
func (a axis) of(row Row) float64 {
	return [...]float64{float64(row.Connections), float64(row.Subjects), row.Offered}[a]
}

// lines gathers rows that differ in nothing but their place on the axis. A line has two points or more.
func (r *Results) lines(of func(Row) bool, a axis, y func(Row) float64) []line {
	type same struct {
		what                  string
		connections, subjects int
	}
	lines := map[same]*line{}
	var order []*line
	for _, row := range r.Rows {
		if !of(row) || a.of(row) <= 0 || y(row) <= 0 { // a logarithm has none of them
			continue
		}
		s := same{row.What, row.Connections, row.Subjects}
		name := row.What
		switch a {
		case byConnections:
			s.connections = 0
		case bySubjects:
			s.subjects = 0
			name = fmt.Sprintf("%s, %d connections", row.What, row.Connections)
		}
		l := lines[s]
		if l == nil {
			l = &line{name: name, dashed: row.Baseline != ""}
			lines[s], order = l, append(order, l)
		}
		if !slices.ContainsFunc(l.points, func(p plotter.XY) bool { return p.X == a.of(row) }) {
			l.points = append(l.points, plotter.XY{X: a.of(row), Y: y(row)})
		}
	}
	var kept []line
	for _, l := range order {
		if len(l.points) > 1 {
			slices.SortFunc(l.points, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
			kept = append(kept, *l)
		}
	}
	return kept
}

func newPlot(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	for _, f := range []*font.Font{&p.Title.TextStyle.Font, &p.X.Label.TextStyle.Font, &p.Y.Label.TextStyle.Font, &p.X.Tick.Label.Font, &p.Y.Tick.Label.Font, &p.Legend.TextStyle.Font} {
		f.Variant = "Sans"
	}
	p.Title.Padding = 3 * vg.Millimeter
	return p
}

func drawLines(title, x, y string, lines []line) ([]byte, error) {
	p := newPlot(title)
	p.X.Label.Text, p.Y.Label.Text = x, y
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Y.Tick.Marker = powers{}
	legend := p.Legend // with its text style
	legend.Top, legend.Left = true, true
	legend.Padding = vg.Millimeter
	p.Add(plotter.NewGrid())
	xs := map[float64]bool{}
	for i, l := range lines {
		line, points, err := plotter.NewLinePoints(l.points)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		line.Color, points.Color = colours[i%len(colours)], colours[i%len(colours)]
		line.Width, points.Radius, points.Shape = vg.Points(1.5), vg.Points(2.5), draw.CircleGlyph{}
		if l.dashed {
			line.Dashes, points.Shape = []vg.Length{vg.Points(5), vg.Points(3)}, draw.BoxGlyph{}
		}
		p.Add(line, points)
		legend.Add(l.name, line, points)
		for _, at := range l.points {
			xs[at.X] = true
		}
	}
	p.X.Tick.Marker = at(xs)
	p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(p.Y.Min))), math.Pow(10, math.Ceil(math.Log10(p.Y.Max)))
	if p.Y.Min == p.Y.Max {
		p.Y.Max *= 10
	}
	const width, height, legendWidth = 25 * vg.Centimeter, 11 * vg.Centimeter, 8 * vg.Centimeter
	c, all := canvas(width, height)
	p.Draw(draw.Crop(all, 0, -legendWidth, 0, 0))
	legend.TextStyle.Font.Size = vg.Points(10)
	legend.Draw(draw.Crop(all, width-legendWidth, 0, 0, -vg.Centimeter))
	return written(c)
}

// barRows are the rows that are shown as bars: reads and writes with barConnections and the most subjects that there
// are figures for.
func (r *Results) barRows() []Row {
	most := map[string]Row{}
	for _, row := range r.Rows {
		if row.Offered > 0 || row.Connections != barConnections || row.Class == Other || row.PerSecond < 1 {
			continue
		}
		if had, ok := most[row.What]; !ok || row.Subjects > had.Subjects {
			most[row.What] = row
		}
	}
	// Bars grow from below.
	return slices.SortedFunc(maps.Values(most), func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.PerSecond, b.PerSecond), cmp.Compare(a.What, b.What))
	})
}

func drawBars(title string, rows []Row) ([]byte, error) {
	p := newPlot(title)
	// A bar chart starts at 0, where a logarithmic scale cannot, so the lengths are logarithms themselves.
	ours, theirs := make(plotter.Values, len(rows)), make(plotter.Values, len(rows))
	names := make([]string, len(rows))
	labels := plotter.XYLabels{}
	for i, row := range rows {
		length := math.Log10(row.PerSecond)
		if row.Baseline == "" {
			ours[i] = length
		} else {
			theirs[i] = length
		}
		names[i] = row.What
		labels.XYs = append(labels.XYs, plotter.XY{X: length, Y: float64(i)})
		labels.Labels = append(labels.Labels, " "+count(int64(row.PerSecond)))
	}
	for i, values := range []plotter.Values{ours, theirs} {
		bars, err := plotter.NewBarChart(values, vg.Points(11))
		if err != nil {
			return nil, err
		}
		bars.Horizontal, bars.Color, bars.LineStyle.Width = true, []color.Color{colours[0], color.Gray{0xaa}}[i], 0
		p.Add(bars)
	}
	figures, err := plotter.NewLabels(labels)
	if err != nil {
		return nil, err
	}
	for i := range figures.TextStyle {
		figures.TextStyle[i].Font.Variant = "Sans"
		figures.TextStyle[i].YAlign = draw.YCenter
	}
	p.Add(figures)
	p.NominalY(names...)
	p.X.Min, p.X.Max = 0, math.Ceil(p.X.Max)+0.7
	var ticks []plot.Tick
	for e := 0.0; e <= p.X.Max; e++ {
		ticks = append(ticks, plot.Tick{Value: e, Label: count(int64(math.Pow(10, e)))})
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	p.X.Label.Text = "records per second; blue: pdvault with the most subjects measured, grey: baselines"
	c, all := canvas(25*vg.Centimeter, vg.Length(len(rows))*vg.Points(17)+3*vg.Centimeter)
	p.Draw(all)
	return written(c)
}

// canvas is white, so that it can be read on a dark page too, and what is drawn has a margin.
func canvas(width, height vg.Length) (*vgsvg.Canvas, draw.Canvas) {
	c := vgsvg.New(width, height)
	all := draw.New(c)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	const margin = 4 * vg.Millimeter
	return c, draw.Crop(all, margin, -margin, margin, -margin)
}

func written(c *vgsvg.Canvas) ([]byte, error) {
	var b bytes.Buffer
	_, err := c.WriteTo(&b)
	return b.Bytes(), err
}

// at are ticks at the measured values.
type at map[float64]bool

// Ticks are in order, without labels where one would run into the one before.
func (a at) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	last := 0.0
	values := make([]float64, 0, len(a))
	for v := range a {
		values = append(values, v)
	}
	slices.Sort(values)
	for _, v := range values {
		t := plot.Tick{Value: v}
		if last == 0 || math.Log(v/last)/math.Log(high/low) > 0.06 {
			t.Label, last = count(int64(v)), v
		}
		ticks = append(ticks, t)
	}
	return ticks
}

// powers are ticks at the powers of ten.
type powers struct{}

// Ticks are labelled as people write numbers.
func (powers) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		v := math.Pow(10, e)
		label := strconv.FormatFloat(v, 'f', -1, 64)
		if v >= 1 {
			label = count(int64(v))
		}
		ticks = append(ticks, plot.Tick{Value: v, Label: label})
		for i := 2.0; i < 10; i++ {
			ticks = append(ticks, plot.Tick{Value: i * v})
		}
	}
	return ticks
}
