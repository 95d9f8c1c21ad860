// A dashboard drawn as Grafana draws it: its own component library, its own theme, units, thresholds, overrides and
// transformations, all taken from the dashboard's JSON. What Grafana keeps for itself, and is done here: the replacing
// of variables, the shape that its Prometheus data source gives to an answer, and the grid.
//
// Known panels: stat, bargauge, timeseries, state-timeline, table and rows. Anything else, and any query that fails, is
// an error: a picture with a hole is worse than none. The state timeline is not in the library, so it is drawn by hand.

import '@fontsource/inter/latin-400.css';
import '@fontsource/inter/latin-500.css';
import {
    FieldColorModeId,
    FieldConfigOptionsRegistry,
    FieldType,
    ThresholdsMode,
    VizOrientation,
    applyFieldOverrides,
    cacheFieldDisplayNames,
    createDataFrame,
    createTheme,
    dateMath,
    dateTime,
    displayNameOverrideProcessor,
    getDisplayValueAlignmentFactors,
    getFieldDisplayName,
    getFieldDisplayValues,
    rangeUtil,
    standardTransformers,
    standardTransformersRegistry,
    transformDataFrame,
} from '@grafana/data';
import {
    BarGauge,
    BigValue,
    GlobalStyles,
    Icon,
    PanelChrome,
    ThemeContext,
    TimeSeries,
    VizLegend,
    VizRepeater,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { createRoot } from 'react-dom/client';

const COLUMNS = 24,
    CELL_PX = 30,
    GAP_PX = 8,
    MARGIN_PX = 16;
const UTC = 'utc';

// What a panel's plugin fills in where its JSON is silent.
const STANDARD = {
    thresholds: {
        mode: ThresholdsMode.Absolute,
        steps: [
            { color: 'green', value: null },
            { color: 'red', value: 80 },
        ],
    },
    color: { mode: FieldColorModeId.Thresholds },
};
const PLUGIN = {
    timeseries: {
        color: { mode: FieldColorModeId.PaletteClassic },
        custom: {
            drawStyle: 'line',
            lineInterpolation: 'linear',
            lineWidth: 1,
            fillOpacity: 0,
            gradientMode: 'none',
            spanNulls: false,
            showPoints: 'auto',
            pointSize: 5,
            barAlignment: 0,
            stacking: { mode: 'none', group: 'A' },
            axisPlacement: 'auto',
            axisLabel: '',
            axisColorMode: 'text',
            axisBorderShow: false,
            axisGridShow: true,
            scaleDistribution: { type: 'linear' },
            axisCenteredZero: false,
            hideFrom: { tooltip: false, viz: false, legend: false },
            thresholdsStyle: { mode: 'off' },
            lineStyle: { fill: 'solid' },
        },
    },
    table: { custom: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false } },
};

// Some go by two names.
const TRANSFORMERS = new Map(Object.values(standardTransformers).map((each) => [each.id, each]));
standardTransformersRegistry.setInit(() =>
    [...TRANSFORMERS.values()].map((each) => ({ ...each, transformation: () => Promise.resolve(each) })),
);

// Called by shoot.cjs. now: seconds since the epoch; scrape_s: how often Prometheus scrapes; parts: which of the headed
// parts are drawn, as [from, to). Returns the titles of panels that have no data.
window.draw = async ({ dashboard, mode, now, scrape_s, width, parts }) => {
    const theme = createTheme({ colors: { mode } });
    // Axes are measured by it before they are drawn.
    await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
    const whole = between(dashboard.time.from, dashboard.time.to, now);
    const variables = await chosen(dashboard, whole);
    const inner = width - 2 * MARGIN_PX;
    const headings = dashboard.panels.filter(({ type }) => type === 'row').map(({ gridPos }) => gridPos.y);
    const rows = parts.map((part) => headings[part] ?? Infinity);
    const panels = dashboard.panels.filter(({ gridPos: { y } }) => y >= rows[0] && y < rows[1]);
    const drawn = await Promise.all(
        panels.map(async (panel) => {
            const { y, ...grid } = panel.gridPos;
            const box = place({ ...grid, y: y - rows[0] }, inner);
            if (panel.type === 'row') return { panel, box };
            const view = seen(panel, box, variables, whole, { now, scrape_s });
            return { panel, box, view, frames: await read(panel, view, theme) };
        }),
    );
    const height = Math.max(...drawn.map(({ box }) => box.y + box.height));
    createRoot(document.getElementById('root')).render(
        <ThemeContext.Provider value={theme}>
            <GlobalStyles />
            <div style={{ width, padding: MARGIN_PX, background: theme.colors.background.canvas }}>
                {parts[0] === 0 && <Head dashboard={dashboard} variables={variables} span={whole} theme={theme} />}
                <div style={{ position: 'relative', height }}>
                    {drawn.map((each) => (
                        <Placed key={each.panel.id} {...each} theme={theme} />
                    ))}
                </div>
            </div>
        </ThemeContext.Provider>,
    );
    return drawn.filter(({ frames }) => frames && isEmpty(frames)).map(({ panel }) => panel.title);
};

const isEmpty = (frames) => !frames.some(({ length }) => length);

// A time range of two texts such as `now/M`, with `now` where the caller says, in UTC.
function between(from, to, now) {
    const at = (text, roundUp) => dateMath.toDateTime(text, { now: dateTime(now * 1000), roundUp, timezone: UTC });
    return { from: at(from, false), to: at(to, true), raw: { from, to } };
}

function place({ x, y, w, h }, inner) {
    const column = (inner + GAP_PX) / COLUMNS;
    return {
        x: x * column,
        y: y * (CELL_PX + GAP_PX),
        width: w * column - GAP_PX,
        height: h * (CELL_PX + GAP_PX) - GAP_PX,
    };
}

// Asking Prometheus

async function ask(path, parameters) {
    const answer = await fetch(`/api/v1/${path}?${new URLSearchParams(parameters)}`);
    const { status, data, error } = await answer.json();
    if (status !== 'success') throw new Error(`${error}: ${JSON.stringify(parameters)}`);
    return data;
}

// Each variable's text for people and its text in a query; one may be made of those before it. What was not chosen is
// the first of its values, and All is what the dashboard says it is.
async function chosen(dashboard, span) {
    const found = [];
    for (const { name, label, type, current, query, includeAll, allValue, hide } of dashboard.templating.list) {
        if (type === 'datasource') continue;
        if (type !== 'query') throw new Error(`a variable that is not known here: ${name}, ${type}`);
        const [, selector, wanted] = replaced(query.query ?? query, found).match(
            /^label_values\((?:(.*),)?\s*(\w+)\)$/,
        );
        const options = await ask(`label/${wanted}/values`, {
            start: span.from.unix(),
            end: span.to.unix(),
            ...(selector && { 'match[]': selector }),
        });
        const isAll = includeAll && [current?.value ?? '$__all'].flat().includes('$__all');
        const values = isAll ? options : [current?.value ?? options[0]].flat();
        found.push({
            name,
            label: label ?? name,
            shown: isAll ? 'All' : values.join(' + '),
            isHidden: hide === 2,
            value: isAll && allValue ? allValue : values.length > 1 ? `(${values.join('|')})` : values[0],
        });
    }
    return found;
}

function replaced(text, variables) {
    const values = Object.fromEntries(variables.map(({ name, value }) => [name, value]));
    return text.replace(
        /\$\{(\w+)(?::\w+)?\}|\$([a-zA-Z_]\w*)/g,
        (whole, braced, bare) => values[braced ?? bare] ?? whole,
    );
}

// What a panel looks at: its range, its step and the values of Grafana's own variables.
function seen(panel, box, variables, whole, { now, scrape_s }) {
    const own = panel.timeFrom && rangeUtil.describeTextRange(panel.timeFrom);
    const timeRange = own ? between(own.from, own.to, now) : whole;
    const [from, to] = [timeRange.from.unix(), timeRange.to.unix()];
    const { interval, intervalMs } = rangeUtil.calculateInterval(
        timeRange,
        panel.maxDataPoints ?? Math.floor(box.width),
        panel.interval ?? `${scrape_s}s`,
    );
    const [step_s, range_s] = [intervalMs / 1000, to - from];
    const builtin = {
        __interval: interval,
        __interval_ms: intervalMs,
        __range: `${range_s}s`,
        __range_s: range_s,
        __range_ms: range_s * 1000,
        __rate_interval: `${Math.max(step_s + scrape_s, 4 * scrape_s)}s`,
    };
    const values = [...variables, ...Object.entries(builtin).map(([name, value]) => ({ name, value }))];
    return {
        replace: (text) => replaced(text, values),
        step_s,
        from,
        to,
        timeRange,
        note: panel.hideTimeOverride ? undefined : own?.display,
    };
}

// The panel's frames, ready to be drawn.
async function read(panel, view, theme) {
    const targets = panel.targets.filter(({ hide }) => !hide);
    const answers = await Promise.all(targets.map((target) => query(target, view, targets.length)));
    const transformations = (panel.transformations ?? []).filter(({ disabled }) => !disabled);
    const frames = await new Promise((resolve, reject) =>
        transformDataFrame(transformations, answers.flat(), { interpolate: view.replace }).subscribe({
            next: resolve,
            error: reject,
        }),
    );
    const ready = applyFieldOverrides({
        data: frames,
        fieldConfig: configured(panel),
        fieldConfigRegistry: registry(panel),
        replaceVariables: view.replace,
        theme,
        timeZone: UTC,
    });
    cacheFieldDisplayNames(ready);
    return ready;
}

async function query(target, { replace, from, to, step_s }, count) {
    const expression = replace(target.expr);
    const step = Math.max(step_s, target.interval ? rangeUtil.intervalToSeconds(replace(target.interval)) : 0);
    const steps = { start: Math.floor(from / step) * step, end: Math.floor(to / step) * step, step };
    const { resultType, result } =
        target.instant && !target.range
            ? await ask('query', { query: expression, time: to })
            : await ask('query_range', { query: expression, ...steps });
    const series = resultType === 'scalar' ? [{ metric: {}, value: result }] : result;
    return target.format === 'table' ? table(target, series, count) : series.map((each) => timed(target, each, steps));
}

const number = (text) => ({ '+Inf': Infinity, '-Inf': -Infinity })[text] ?? Number(text);

// A value or null at every step that was asked for, so that a gap is a gap; what is not a number is one too.
function filled(values, { start, end, step }) {
    const known = new Map(values.map(([at, text]) => [at, number(text)]));
    return Array.from({ length: Math.floor((end - start) / step) + 1 }, (_, place) => {
        const value = known.get(start + place * step);
        return [start + place * step, Number.isFinite(value) ? value : null];
    });
}

function timed({ legendFormat, refId }, { metric, values, value }, steps) {
    const points = values ? filled(values, steps) : [[value[0], number(value[1])]];
    return createDataFrame({
        refId,
        fields: [
            {
                name: 'Time',
                type: FieldType.time,
                config: { interval: steps.step * 1000 },
                values: points.map(([at]) => at * 1000),
            },
            {
                name: 'Value',
                type: FieldType.number,
                labels: metric,
                config: { displayNameFromDS: legend(legendFormat, metric) },
                values: points.map(([, each]) => each),
            },
        ],
    });
}

function legend(format, { __name__: name = '', ...labels }) {
    if (format && format !== '__auto') return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');
    const named = Object.entries(labels);
    if (format === '__auto' && named.length === 1) return named[0][1];
    return (
        name + (named.length ? `{${named.map(([label, value]) => `${label}="${value}"`).join(', ')}}` : '') || undefined
    );
}

function table({ refId }, series, count) {
    const rows = series.flatMap(({ metric, values, value }) =>
        (values ?? [value]).map(([at, text]) => ({ metric, at, text })),
    );
    const labels = [...new Set(series.flatMap(({ metric }) => Object.keys(metric)))].sort();
    return createDataFrame({
        refId,
        meta: { preferredVisualisationType: 'table' },
        fields: [
            { name: 'Time', type: FieldType.time, config: {}, values: rows.map(({ at }) => at * 1000) },
            ...labels.map((label) => ({
                name: label,
                type: FieldType.string,
                config: { filterable: true },
                values: rows.map(({ metric }) => metric[label]),
            })),
            {
                name: count > 1 ? `Value #${refId}` : 'Value',
                type: FieldType.number,
                config: {},
                values: rows.map(({ text }) => number(text)),
            },
        ],
    });
}

// The JSON's field options over what the plugin fills in.
function configured({ type, fieldConfig = {} }) {
    const { defaults = {}, overrides = [] } = fieldConfig;
    const plugin = PLUGIN[type] ?? {};
    return {
        defaults: { ...STANDARD, ...plugin, ...defaults, custom: { ...plugin.custom, ...defaults.custom } },
        overrides,
    };
}

// Every option that the panel names, each applied as it is; of a plugin's registry nothing else matters for a picture.
function registry(panel) {
    const { defaults, overrides } = configured(panel);
    const ids = new Set([
        ...Object.keys(defaults).filter((key) => key !== 'custom'),
        ...Object.keys(defaults.custom).map((key) => `custom.${key}`),
        ...overrides.flatMap(({ properties }) => properties.map(({ id }) => id)),
    ]);
    const numeric = new Set(['min', 'max', 'decimals', 'thresholds']);
    return new FieldConfigOptionsRegistry(() =>
        [...ids].map((id) => ({
            id,
            name: id,
            isCustom: id.startsWith('custom.'),
            path: id.replace(/^custom\./, ''),
            settings: {},
            process: id === 'displayName' ? displayNameOverrideProcessor : (value) => value,
            shouldApply: (field) => !numeric.has(id) || field.type === FieldType.number,
        })),
    );
}

// Drawing

function Head({ dashboard, variables, span, theme }) {
    const chip = {
        border: `1px solid ${theme.colors.border.medium}`,
        borderRadius: theme.shape.radius.default,
        padding: '3px 8px',
        fontSize: 12,
        color: theme.colors.text.primary,
        background: theme.colors.background.primary,
    };
    const at = (moment) => moment.utc().format('YYYY-MM-DD HH:mm');
    return (
        <div style={{ display: 'flex', alignItems: 'center', gap: 8, paddingBottom: 12 }}>
            <span style={{ fontSize: 18, fontWeight: 500, marginRight: 12, color: theme.colors.text.primary }}>
                {dashboard.title}
            </span>
            {variables
                .filter(({ isHidden }) => !isHidden)
                .map(({ name, label, shown }) => (
                    <span key={name} style={chip}>
                        <span style={{ color: theme.colors.text.secondary }}>{label}</span> {shown}
                    </span>
                ))}
            <span style={{ ...chip, marginLeft: 'auto' }}>
                {at(span.from)} to {at(span.to)} UTC
            </span>
        </div>
    );
}

function Placed({ panel, box, frames, view, theme }) {
    const style = { position: 'absolute', left: box.x, top: box.y, width: box.width, height: box.height };
    if (panel.type === 'row') {
        return (
            <div style={{ ...style, ...theme.typography.h6, paddingTop: 4, color: theme.colors.text.primary }}>
                {panel.title}
            </div>
        );
    }
    const Body = BODIES[panel.type];
    if (!Body) throw new Error(`a panel that is not known here: ${panel.type} (${panel.title})`);
    const note = view.note && (
        <span
            style={{
                ...theme.typography.bodySmall,
                color: theme.colors.text.secondary,
                display: 'flex',
                gap: 4,
                alignItems: 'center',
            }}
        >
            <Icon name="clock-nine" size="sm" />
            {view.note}
        </span>
    );
    return (
        <div style={style}>
            <PanelChrome
                width={box.width}
                height={box.height}
                title={panel.title}
                description={panel.description}
                titleItems={note}
                displayMode={panel.transparent ? 'transparent' : 'default'}
                padding={panel.type === 'table' ? 'none' : 'md'}
            >
                {(width, height) =>
                    isEmpty(frames) && panel.type !== 'stat' ? (
                        <div style={{ display: 'grid', placeItems: 'center', height }}>
                            {configured(panel).defaults.noValue ?? 'No data'}
                        </div>
                    ) : (
                        <Body panel={panel} frames={frames} view={view} theme={theme} width={width} height={height} />
                    )
                }
            </PanelChrome>
        </div>
    );
}

function values(panel, frames, view, theme, more) {
    return getFieldDisplayValues({
        fieldConfig: configured(panel),
        reduceOptions: { calcs: ['lastNotNull'], ...panel.options.reduceOptions },
        replaceVariables: view.replace,
        theme,
        timeZone: UTC,
        data: frames,
        ...more,
    });
}

function Repeated({ panel, frames, view, theme, width, height, more, children, ...rest }) {
    return (
        <VizRepeater
            getValues={() => values(panel, frames, view, theme, more)}
            getAlignmentFactors={getDisplayValueAlignmentFactors}
            renderValue={children}
            width={width}
            height={height}
            source={frames}
            renderCounter={0}
            orientation={panel.options.orientation || VizOrientation.Auto}
            {...rest}
        />
    );
}

function Stat(properties) {
    const {
        panel: { title, options, fieldConfig },
        view,
        theme,
    } = properties;
    const {
        graphMode = 'area',
        colorMode = 'value',
        textMode = 'auto',
        justifyMode = 'auto',
        wideLayout = true,
    } = options;
    const isNamed = textMode === 'auto' && (fieldConfig?.defaults?.displayName || !title);
    const more = { sparkline: graphMode !== 'none', percentChange: options.showPercentChange };
    return (
        <Repeated {...properties} more={more} autoGrid>
            {({ value, width, height, count, alignmentFactors }) => (
                <BigValue
                    value={value.display}
                    count={count}
                    alignmentFactors={alignmentFactors}
                    width={width}
                    height={height}
                    theme={theme}
                    sparkline={value.sparkline && { ...value.sparkline, timeRange: view.timeRange }}
                    text={options.text}
                    graphMode={graphMode}
                    colorMode={colorMode}
                    justifyMode={justifyMode}
                    disableWideLayout={!wideLayout}
                    textMode={isNamed ? 'value_and_name' : textMode}
                    percentChangeColorMode={options.percentChangeColorMode}
                />
            )}
        </Repeated>
    );
}

function Bars(properties) {
    const {
        panel: { options },
        theme,
    } = properties;
    return (
        <Repeated
            {...properties}
            itemSpacing={10}
            minVizWidth={options.minVizWidth ?? 8}
            minVizHeight={options.minVizHeight ?? 16}
            maxVizHeight={options.maxVizHeight ?? 300}
        >
            {({ value: { field, display, view, colIndex }, width, height, orientation, alignmentFactors }) => (
                <BarGauge
                    value={display}
                    field={field}
                    display={colIndex === undefined ? undefined : view?.getFieldDisplayProcessor(colIndex)}
                    width={width}
                    height={height}
                    orientation={orientation}
                    alignmentFactors={alignmentFactors}
                    theme={theme}
                    text={options.text}
                    displayMode={options.displayMode ?? 'gradient'}
                    showUnfilled={options.showUnfilled ?? true}
                    valueDisplayMode={options.valueMode ?? 'color'}
                    namePlacement={options.namePlacement ?? 'auto'}
                    itemSpacing={10}
                />
            )}
        </Repeated>
    );
}

function Lines({ panel, frames, view, width, height }) {
    const legend = { displayMode: 'list', placement: 'bottom', showLegend: true, calcs: [], ...panel.options?.legend };
    return (
        <TimeSeries
            frames={frames}
            width={width}
            height={height}
            timeRange={view.timeRange}
            timeZone={UTC}
            legend={legend}
            options={{}}
        />
    );
}

function Rows({ panel, frames, view, theme, width, height }) {
    const { sortBy, cellHeight, frameIndex = 0, showHeader = true } = panel.options ?? {};
    return (
        <TableNG
            data={frames[frameIndex]}
            width={width}
            height={height}
            noHeader={!showHeader}
            sortBy={sortBy}
            cellHeight={cellHeight}
            fieldConfig={configured(panel)}
            timeRange={view.timeRange}
            theme={theme}
            structureRev={1}
            enableVirtualization={false}
        />
    );
}

// Each series is a line of coloured stretches; its legend is what the values are called.
function States({ frames, view, theme, width, height }) {
    const [labels_px, axis_px, legend_px] = [130, 20, 24];
    const lines = frames.map((frame) => ({
        name: getFieldDisplayName(frame.fields[1], frame, frames),
        fields: frame.fields,
    }));
    const line_px = (height - axis_px - legend_px) / lines.length;
    const x = (ms) => labels_px + ((ms / 1000 - view.from) / (view.to - view.from)) * (width - labels_px);
    const shown = lines.flatMap(({ fields: [, { values, display }] }) =>
        values.filter((value) => value !== null).map((value) => display(value)),
    );
    const items = [...new Map(shown.map(({ text, color }) => [text, { label: text, color, yAxis: 1 }])).values()];
    const hours = Array.from({ length: 7 }, (_, place) => view.from + ((view.to - view.from) * place) / 6).slice(1, -1);
    const text = { fill: theme.colors.text.primary, fontSize: 12 };
    return (
        <>
            <svg width={width} height={height - legend_px}>
                {lines.map(({ name, fields: [time, { values, display }] }, row) => (
                    <g key={name}>
                        <text
                            x={labels_px - 8}
                            y={(row + 0.5) * line_px}
                            textAnchor="end"
                            dominantBaseline="middle"
                            {...text}
                        >
                            {name}
                        </text>
                        {values.map(
                            (value, place) =>
                                value !== null && (
                                    <rect
                                        key={place}
                                        x={x(time.values[place])}
                                        y={row * line_px + 2}
                                        height={line_px - 4}
                                        fill={display(value).color}
                                        fillOpacity={0.7}
                                        width={Math.max(
                                            0,
                                            Math.min(x(time.values[place] + view.step_s * 1000), width) -
                                                x(time.values[place]),
                                        )}
                                        shapeRendering="crispEdges"
                                    />
                                ),
                        )}
                    </g>
                ))}
                {hours.map((at) => (
                    <text key={at} x={x(at * 1000)} y={height - legend_px - 4} textAnchor="middle" {...text}>
                        {dateTime(at * 1000)
                            .utc()
                            .format('HH:mm')}
                    </text>
                ))}
            </svg>
            <VizLegend items={items} placement="bottom" displayMode="list" />
        </>
    );
}

const BODIES = { stat: Stat, bargauge: Bars, timeseries: Lines, 'state-timeline': States, table: Rows };
