// Code with its keywords, strings, numbers and comments marked: one pass, no grammar. `nodes(code, language)` gives DOM
// nodes.

const WORDS = {
  c: "auto bool break case char class const constexpr continue default delete do double else enum extern false float for goto if inline int long namespace new nullptr operator private protected public return short signed sizeof static struct switch template this throw true try typedef typename union unsigned using virtual void volatile while",
  rust: "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while",
  python: "and as assert async await break class continue def del elif else except False finally for from global if import in is lambda None nonlocal not or pass raise return True try while with yield match case",
  js: "async await break case catch class const continue debugger default delete do else export extends false finally for from function if import in instanceof interface let new null of return static super switch this throw true try type typeof undefined var void while yield",
  go: "break case chan const continue default defer else fallthrough false for func go goto if import interface map nil package range return select struct switch true type var",
  java: "abstract boolean break byte case catch char class const continue default do double else enum extends false final finally float for if implements import instanceof int interface long native new null package private protected public record return short static super switch this throw throws true try var void while",
  sh: "case do done elif else esac exit export fi for function if in local return set then unset until while",
  sql: "select from where group by order having insert into values update set delete create table drop alter index join left right inner outer on as and or not null is in like limit distinct union all case when then else end primary key references",
};
const FAMILY = {
  cpp: "c", "c++": "c", h: "c", hpp: "c", rs: "rust", py: "python", javascript: "js", typescript: "js", ts: "js", jsx: "js",
  tsx: "js", golang: "go", kotlin: "java", csharp: "java", "c#": "java", bash: "sh", shell: "sh", zsh: "sh", console: "sh",
};
const HASH_COMMENTS = new Set(["python", "sh", "yaml", "yml", "toml", "ruby", "rb", "r", "make", "dockerfile"]);
const PLAIN = new Set(["", "text", "txt", "plain", "markdown", "md", "diff", "output"]);

// An entry of a table; what all objects have, such as `constructor`, is none.
const entry = (table, name) => (Object.hasOwn(table, name) ? table[name] : undefined);

export function nodes(code, language) {
  language = language.toLowerCase();
  if (PLAIN.has(language) || code.length > 60000) return [document.createTextNode(code)];
  const family = entry(FAMILY, language) ?? language;
  const keywords = new Set((entry(WORDS, family) ?? "true false null").split(" "));
  const line = HASH_COMMENTS.has(family) ? "#[^\\n]*" : family === "sql" || family === "lua" ? "--[^\\n]*" : "//[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)";
  const strings = `"(?:[^"\\\\\\n]|\\\\.)*"?|'(?:[^'\\\\\\n]|\\\\.){0,500}'` + (family === "js" || family === "go" ? "|`(?:[^`\\\\]|\\\\.)*`?" : "");
  const triple = family === "python" ? `"""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)|` : "";
  const pattern = new RegExp(`(${line})|(${triple}${strings})|(\\b\\d[\\w.]*)|([A-Za-z_]\\w*)(?=(\\s*\\()?)`, "g");
  const out = [];
  let at = 0;
  for (const match of code.matchAll(pattern)) {
    const [text, comment, string, number, word, call] = match;
    const known = word && keywords.has(family === "sql" ? word.toLowerCase() : word);
    const kind = comment ? "com" : string ? "str" : number ? "num" : known ? "kw" : word && call !== undefined ? "fn" : "";
    if (!kind) continue;
    out.push(document.createTextNode(code.slice(at, match.index)));
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    out.push(span);
    at = match.index + text.length;
  }
  out.push(document.createTextNode(code.slice(at)));
  return out;
}
