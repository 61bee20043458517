"""The visible text of an HTML page."""
import html.parser
import re

# Python's parser fails on such numbers (more digits than int() takes); no character has one.
OVERSIZED_REFERENCE = re.compile(r"&#[0-9]{8,};?")


class TextExtractor(html.parser.HTMLParser):
    """Collects the visible text of a page; block elements start a new line, white space runs collapse."""

    INVISIBLE = {"script", "style", "head", "template", "noscript", "svg"}
    BLOCKS = {
        "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "figure", "footer",
        "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section",
        "table", "td", "th", "tr", "ul",
    }

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.invisible, self.preformatted = [], 0, 0

    def handle_starttag(self, tag, attributes):
        if tag == "body":  # a <head> that is never closed ends here
            self.invisible = 0
        self.invisible += tag in self.INVISIBLE
        self.preformatted += tag == "pre"
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.invisible = max(0, self.invisible - (tag in self.INVISIBLE))
        self.preformatted = max(0, self.preformatted - (tag == "pre"))
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data):
        if not self.invisible:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))

    def parse_marked_section(self, i, report=1):
        """`<![if IE]>` and whatever else begins so: a comment, as in browsers. Python's own fails on unknown ones."""
        return self.parse_bogus_comment(i, report)


def without_open_ends(content):
    """Marks that nothing closes become text: Python's parser would search the rest of the page for each of them."""
    last = content.rfind("-->") + 1
    content = content[:last] + content[last:].replace("<!--", "&lt;!--")
    last = content.rfind(">") + 1
    return content[:last] + content[last:].replace("<", "&lt;")


def html_to_text(content):
    parser = TextExtractor()
    parser.feed(without_open_ends(OVERSIZED_REFERENCE.sub("\ufffd", content)))
    parser.close()
    text = "\n".join(line.rstrip(" ") for line in "".join(parser.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
